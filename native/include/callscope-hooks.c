/* The compiler's hooks (-finstrument-functions) for Windows programs, whose linker wants them defined: compile this
 * file with the program. They do nothing until the agent has filled the table of callscope.h; it is told the function,
 * the stack pointer around the call of the hook, and where that returns to. Elsewhere this file is empty: there the
 * agent itself has the hooks.
 *
 * Each begins with a no-operation by which callscope knows it, so that it is not recorded as a call. */
#include "callscope.h"

#if defined(__x86_64__) && defined(_WIN32) && defined(__GNUC__)
#define CALLSCOPE_HOOK(name, letter, place)                                                                            \
    __asm__(".text\n\t.p2align 4\n\t.globl " name "\n" name ":\n"                                                      \
            "\t.byte 0x0f, 0x1f, 0x84, 0x00, 0x43, 0x53, 0x48, " letter "\n"                                           \
            "\tmovq callscope_table+" place "(%rip), %rax\n\ttestq %rax, %rax\n\tjz 1f\n"                              \
            "\tleaq 8(%rsp), %rdx\n\tmovq (%rsp), %r8\n\tjmpq *%rax\n1:\tretq\n")
CALLSCOPE_HOOK("__cyg_profile_func_enter", "0x45", "64");
CALLSCOPE_HOOK("__cyg_profile_func_exit", "0x58", "72");
#endif

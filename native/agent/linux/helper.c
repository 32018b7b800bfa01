/* Threads of the agent's own in the program: a stack, and nothing else. They have no thread-local data and hold all
 * signals back. */
#include <linux/sched.h>

#include "../core/system.h"
#include "linux.h"
#include "syscall.h"

#define STACK_BYTES 0x8000u
#define SHARED (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM)

/* clone(2): the new thread begins on its own stack, with the registers of the caller. */
static long begin_thread(uint8_t *top, void run(void)) {
    long result = SYS_clone;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    register void (*r9)(void) __asm__("r9") = run;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call *%%r9\n"
                     "1:"
                     : "+a"(result)
                     : "D"((long)SHARED), "S"(top), "d"(0l), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory", "cc");
    return result;
}

bool cs_helper_begin(uint8_t **stack, void run(void)) {
    if (!*stack)
        *stack = cs_system_memory(STACK_BYTES);
    uint64_t signals = cs_system_block_signals();
    bool done = *stack && !cs_failed(begin_thread(*stack + STACK_BYTES, run));
    cs_system_restore_signals(signals);
    return done;
}

/* The routines of core/routines.inc for Windows.
 *
 * A thread's data lies in four neighbouring TLS slots, which are zero in a thread that has none yet. bind_routines
 * (start.c) writes the place of the first slot into the instructions at start: in the thread's environment block, or,
 * in routines whose names end in _wide, in its array of expansion slots.
 *
 * C code runs on a stack of the agent's own: those of goroutines and fibers may have no room for it. Vector registers are
 * kept around it, since system calls may change them. */

    .intel_syntax noprefix
#define ARGUMENT1 rcx
#define ARGUMENT2 rdx
#define ARGUMENT2_32 edx
#define ARGUMENT3 r8
#define ARGUMENT3_32 r8d

    .macro bound name
    .globl \name
\name:
    .endm

    .section .rdata$thread_places, "dr"
    .p2align 2
    bound cs_thread_places

    .section .text$routines, "xr"
    .p2align 12
    bound cs_routines_text

    .set TEB_EXPANSION_SLOTS, 0x1780
    .set STACKS, 64
    .set STACK_BYTES, 0x5000
    .set XSAVE_BYTES, 0x1000 /* all states of cs_start's mask take 2,688 */
    .set wide, 0

    .macro routine name
    .p2align 6
    .globl \name
    .def \name
    .scl 2
    .type 32
    .endef
\name:
    .seh_proc \name
    .endm

    .macro end_routine name
    .seh_endproc
    .endm

    .macro keep register
    push \register
    .seh_pushreg \register
    .endm

    .macro restore register
    pop \register
    .endm

    /* All status flags into rax, and back. The unwinder takes what follows sahf for an epilogue. */
    .macro keep_flags
    lahf
    seto al
    push rax
    .seh_stackalloc 8
    .endm

    .macro restore_flags
    mov rax, [rsp]
    add al, 0x7f
    sahf
    pop rax
    .endm

    .macro keep_rflags
    pushfq
    .seh_stackalloc 8
    .endm

    .macro restore_rflags
    popfq
    .endm

    .macro keep_frame
    keep rbp
    mov rbp, rsp
    .seh_setframe rbp, 0
    .endm

    .macro restore_frame
    mov rsp, rbp
    pop rbp
    .endm

    .macro body
    .seh_endprologue
    .endm

    .macro frame_remember
    .endm

    .macro frame_back
    .endm

    .macro call_c function
    lea r10, [rip + \function]
    call cs_on_agent_stack
    .endm

    .macro place
77: .pushsection .rdata$thread_places, "dr"
    .long 77b - 4 - .
    .popsection
    .endm

    /* \register = the first slot; without \missing it is known to hold a block. */
    .macro load_block register, missing
    .if wide
    mov \register, gs:[TEB_EXPANSION_SLOTS]
    .ifnb \missing
    test \register, \register
    jz \missing
    .endif
    mov \register, [\register + 0x7fffffff]
    .else
    mov \register, gs:[0x7fffffff]
    .endif
    place
    .ifnb \missing
    test \register, \register
    jz \missing
    .endif
    .endm

    /* Call the C function r10 on a free stack of the agent's. Changes rsi and rdi besides what C may change. */
    routine cs_on_agent_stack
    mov rsi, rsp
    .seh_setframe rsi, 0
    body
1:  mov edi, STACKS
2:  dec edi
    js 3f
    lea r9, [rip + stacks_busy]
    mov al, 1
    cmp byte ptr [r9 + rdi], 0
    jne 2b
    xchg al, [r9 + rdi]
    test al, al
    jnz 2b
    lea eax, [rdi + 1]
    imul eax, eax, STACK_BYTES
    lea r11, [rip + cs_stacks]
    lea r11, [r11 + rax - XSAVE_BYTES]
    mov r9, rdx
    mov eax, [rip + cs_xsave_mask]
    xor edx, edx
    xsave64 [r11]
    mov rdx, r9
    lea rsp, [r11 - 48]
    mov [rsp + 32], r11
    call r10
    mov r11, [rsp + 32]
    mov r8, rax
    mov eax, [rip + cs_xsave_mask]
    xor edx, edx
    xrstor64 [r11]
    mov rax, r8
    lea r9, [rip + stacks_busy]
    mov byte ptr [r9 + rdi], 0
    mov rsp, rsi
    ret
3:  pause
    jmp 1b
    end_routine cs_on_agent_stack

#include "../core/routines.inc"

    routine_set
    .set wide, 1
    routine_set _wide
    capture_routines

    /* What trampolines call after detaching. */
    routine cs_off
    body
    ret
    end_routine cs_off

    /* The same where the trampoline stores arguments afterwards. */
    routine cs_off_words
    body
    lea rcx, [rip + nowhere]
    ret
    end_routine cs_off_words

    .p2align 12 /* no other code shares the pages that bind_routines makes writable for a moment */
    bound cs_routines_text_end

    .section .rdata$thread_places, "dr"
    bound cs_thread_places_end

    .section .rdata, "dr"
    .p2align 3
    bound cs_routines
    routine_rows
    routine_rows _wide

    .bss
    .p2align 6
    bound cs_stacks
    .space STACKS * STACK_BYTES
    bound cs_stacks_end
nowhere:
    .space 1024
stacks_busy:
    .space STACKS

    .text
    /* void callscope_capture(uint64_t tag): makes a struct cs_called. */
    routine callscope_capture
    keep r15
    keep r14
    keep r13
    keep r12
    keep rbp
    keep rbx
    mov rdx, rcx
    mov rcx, rsp
    sub rsp, 40
    .seh_stackalloc 40
    body
    call cs_captured
    add rsp, 40
    restore rbx
    restore rbp
    restore r12
    restore r13
    restore r14
    restore r15
    ret
    end_routine callscope_capture

    .section .drectve, "yn"
    .ascii " -export:callscope_capture"

/* Ways into the agent besides the hot path: arriving signals, and new threads. */

    .intel_syntax noprefix
    .text

    .macro keep register
    push \register
    .cfi_adjust_cfa_offset 8
    .endm

    .macro restore register
    pop \register
    .cfi_adjust_cfa_offset -8
    .endm

    .macro function name
    .p2align 4
    .globl \name
    .type \name, @function
\name:
    .cfi_startproc
    .endm

    .macro end_function name
    .cfi_endproc
    .size \name, . - \name
    .endm

    /* What the kernel calls for a fatal signal. The program's handler is entered as the kernel would enter it. */
    .hidden cs_signal_entry
    function cs_signal_entry
    keep rdi
    keep rsi
    keep rdx
    call cs_signal_arrived
    mov rcx, rdx
    restore rdx
    restore rsi
    restore rdi
    test rax, rax
    jz 2f
    test rcx, rcx
    jz 1f
    mov rsp, rcx /* another copy of the frame */
    lea rdx, [rcx + 8]
    lea rsi, [rcx + 312]
1:  jmp rax
2:  ret
    end_function cs_signal_entry

    /* Where handlers return to. Unwinders and debuggers know these nine bytes. */
    .hidden __restore_rt
    .p2align 4
    nop
    .globl __restore_rt
    .type __restore_rt, @function
__restore_rt:
    .byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0 /* mov rax, SYS_rt_sigreturn */
    syscall
    .size __restore_rt, . - __restore_rt

    /* int pthread_create(thread, attributes, start, argument) */
    function pthread_create
    keep rdi
    keep rsi
    keep rdx
    keep rcx
    sub rsp, 8
    .cfi_adjust_cfa_offset 8
    mov rdi, rdx
    mov rsi, rcx
    mov rdx, [rsp + 40]
    call cs_thread_package
    mov [rsp], rax
    call cs_thread_create_next
    mov r11, rax
    restore rax
    restore rcx
    restore rdx
    restore rsi
    restore rdi
    test r11, r11
    jz 2f
    test rax, rax
    jz 1f
    mov rcx, rax
    lea rdx, [rip + cs_thread_main]
1:  jmp r11
2:  mov eax, 11 /* EAGAIN */
    ret
    end_function pthread_create

    /* void callscope_capture(uint64_t tag): makes a struct cs_called. */
    function callscope_capture
    keep r15
    keep r14
    keep r13
    keep r12
    keep rbp
    keep rbx
    mov rsi, rdi
    mov rdi, rsp
    sub rsp, 8
    .cfi_adjust_cfa_offset 8
    call cs_captured
    add rsp, 8
    .cfi_adjust_cfa_offset -8
    restore rbx
    restore rbp
    add rsp, 32
    .cfi_adjust_cfa_offset -32
    ret
    end_function callscope_capture

    /* A new thread, with its package. */
    .hidden cs_thread_main
    function cs_thread_main
    keep rdi
    call cs_thread_begin
    restore rdi
    mov rdi, rdx
    jmp rax
    end_function cs_thread_main

    .section .note.GNU-stack, "", @progbits

/* cs_injection.code. rcx = the cs_injection's address; a thread's start routine or an APC. The result is that of the
 * agent's function, or -1 when the library cannot be loaded. */
    .intel_syntax noprefix
    .set LOAD_LIBRARY, 128
    .set GET_PROCEDURE, 136
    .set LIBRARY, 144
    .set FUNCTION, 2192
    .set START, 2216

    .section .rdata, "dr"
    .globl cs_stub
    .globl cs_stub_end
cs_stub:
    push rbx
    sub rsp, 32
    mov rbx, rcx
    lea rcx, [rbx + LIBRARY]
    call [rbx + LOAD_LIBRARY]
    test rax, rax
    jz 1f
    mov rcx, rax
    lea rdx, [rbx + FUNCTION]
    call [rbx + GET_PROCEDURE]
    test rax, rax
    jz 1f
    lea rcx, [rbx + START]
    call rax
    jmp 2f
1:  or eax, -1
2:  add rsp, 32
    pop rbx
    ret
cs_stub_end:

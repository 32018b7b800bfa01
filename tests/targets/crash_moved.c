// Faults in instructions that trampolines take over: the first of a function, those before its ret, calls; and a stack
// overflow, which happens wherever the stack ends.
__asm__(".text\n"
        ".type first, @function\n"
        "first: .cfi_startproc\n"
        "    movq (%rdi), %rax\n    addq $1, %rax\n    addq $2, %rax\n    xorl %edx, %edx\n    ret\n"
        "    .cfi_endproc\n    .size first, . - first\n"
        ".type last, @function\n"
        "last: .cfi_startproc\n"
        "    pushq %rbx\n    .cfi_adjust_cfa_offset 8\n    movl $0x77, %ebx\n    movl $0x55, %ecx\n    .nops 16, 1\n"
        "    movq (%rdi), %rax\n    popq %rbx\n    .cfi_adjust_cfa_offset -8\n    ret\n"
        "    .cfi_endproc\n    .size last, . - last\n"
        ".type indirect, @function\n"
        "indirect: .cfi_startproc\n"
        "    subq $8, %rsp\n    .cfi_adjust_cfa_offset 8\n    call *(%rdi)\n    addq $8, %rsp\n"
        "    .cfi_adjust_cfa_offset -8\n    ret\n"
        "    .cfi_endproc\n    .size indirect, . - indirect\n"
        ".type recurse, @function\n"
        "recurse: .cfi_startproc\n"
        "    incl %edi\n    pushq %rdi\n    .cfi_adjust_cfa_offset 8\n    call recurse\n    popq %rdi\n"
        "    .cfi_adjust_cfa_offset -8\n    ret\n"
        "    .cfi_endproc\n    .size recurse, . - recurse\n");

long first(void *), last(void *), indirect(void *), recurse(int);

int main(int count, char **arguments) {
    void *nothing = 0;
    (void)count;
    switch (arguments[1][0]) {
    case 'f':
        return (int)first((void *)0x18);
    case 'l':
        return (int)last((void *)0x28);
    case 'i':
        return (int)indirect((void *)0x38);
    case 'n':
        return (int)indirect(&nothing);
    default:
        return (int)recurse(0);
    }
}

/* A recursive function of a few instructions, plain (fib) and with two time stamps in it (fib_floor), which is what the
 * clock alone costs. `agent_fib N ROUNDS` prints the best nanoseconds a call of each. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int fib(int n);
int fib_floor(int n);

#define STAMP "push %rax\n push %rdx\n rdtsc\n pop %rdx\n pop %rax\n"
#define FIB(name, stamp)                                                                                               \
    __asm__(".text\n .p2align 5\n .globl " name "\n .type " name ", @function\n" name ":\n .cfi_startproc\n" stamp     \
            "push %rbp\n push %rbx\n sub $8, %rsp\n mov %edi, %ebx\n cmp $1, %edi\n jle 1f\n"                          \
            "lea -1(%rbx), %edi\n call " name "\n mov %eax, %ebp\n lea -2(%rbx), %edi\n call " name "\n"               \
            "add %ebp, %eax\n jmp 2f\n1: mov %ebx, %eax\n2: add $8, %rsp\n pop %rbx\n pop %rbp\n" stamp "ret\n"        \
            ".cfi_endproc\n .size " name ", . - " name "\n")

FIB("fib", "");
FIB("fib_floor", STAMP);

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double measure(int (*function)(int), int n, int rounds) {
    double best = 1e9, calls = 2.0 * function(n + 1) - 1;
    for (int round = 0; round < rounds; round++) {
        double start = seconds();
        function(n);
        double taken = (seconds() - start) * 1e9 / calls;
        if (taken < best)
            best = taken;
    }
    return best;
}

int main(int count, char **words) {
    int n = count > 1 ? atoi(words[1]) : 20, rounds = count > 2 ? atoi(words[2]) : 3;
    printf("%.2f %.2f\n", measure(fib, n, rounds), measure(fib_floor, n, rounds));
    return 0;
}

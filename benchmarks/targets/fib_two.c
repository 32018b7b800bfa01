// The cost of arguments: prints nanoseconds per call of a recursive function of two integers with an integer result.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long calls; // counted by arithmetic, not by the function

__attribute__((noinline)) int fib(int n, int salt) {
    __asm__ volatile(""); // or half of the calls become a loop
    return n < 2 ? n + salt : fib(n - 1, salt) + fib(n - 2, salt);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

int main(int count, char **arguments) {
    int n = count > 1 ? atoi(arguments[1]) : 30;
    if (count > 2)
        fib(atoi(arguments[2]), 0);
    double begin = now();
    int result = fib(n, 0);
    double end = now();
    long below = 1;
    calls = 1;
    for (int i = 2; i <= n; i++) { // calls(n) = 1 + calls(n - 1) + calls(n - 2)
        long next = 1 + calls + below;
        below = calls;
        calls = next;
    }
    printf("%d ns_per_call %.3f\n", result, (end - begin) / (double)calls);
}

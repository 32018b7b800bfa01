// The cost of a call: prints nanoseconds per call of a recursive Fibonacci function that does next to nothing.
// Arguments: what to compute, and optionally what to compute before the clock starts, to warm up.
// With TWO_RDTSC every call reads the time-stamp counter twice: no tracer that times calls can be cheaper.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#ifdef _WIN32
#include <windows.h>
#else
#include <time.h>
#endif

#ifdef TWO_RDTSC
#define TICK __asm__ volatile("rdtsc" : : : "rax", "rdx")
#else
#define TICK __asm__ volatile("") // or half of the calls become a loop
#endif

#ifdef STOPPED
#include <callscope.h>
#endif

#ifdef INLINED
static inline __attribute__((always_inline)) void inlined(void) {
    __asm__ volatile("");
}
#else
#define inlined() (void)0
#endif

static long calls; // counted by arithmetic, not by the function

__attribute__((noinline)) long fib(long n) {
    TICK;
    inlined();
    long result = n < 2 ? n : fib(n - 1) + fib(n - 2);
    TICK;
    return result;
}

__attribute__((no_instrument_function)) static double now(void) {
#ifdef _WIN32
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return (double)count.QuadPart * 1e9 / (double)frequency.QuadPart;
#else
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
#endif
}

__attribute__((no_instrument_function)) int main(int argc, char **argv) {
    long n = argc > 1 ? atol(argv[1]) : 30;
    fib(argc > 2 ? atol(argv[2]) : 20); // caches, page tables, the tracer's first chunk or all of its ring
#ifdef STOPPED
    callscope_stop();
#endif
    double begin = now();
    long result = fib(n);
    double end = now();
    long a = 1, b = 1; // calls of fib(k) = 1 + calls(k - 1) + calls(k - 2)
    for (long k = 1; k < n; k++) {
        long next = 1 + a + b;
        a = b;
        b = next;
    }
    calls = n < 1 ? 1 : b;
    printf("fib %ld calls %ld ns_per_call %.3f\n", result, calls, (end - begin) / (double)calls);
    return 0;
}

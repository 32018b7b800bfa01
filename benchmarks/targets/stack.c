// The cost of capturing a stack of 20 frames of its own (and main's callers): stack METHOD CAPTURES.
#define _GNU_SOURCE
#include <execinfo.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef HAVE_LIBUNWIND
#define UNW_LOCAL_ONLY
#include <libunwind.h>
#endif

#define NOINLINE __attribute__((noinline))
#define DEPTH 20
#define MOST 64

extern void callscope_capture(uint64_t tag) __attribute__((weak));

static void *found[MOST];
static long rounds, depth;
static char *bottom;

// As careful as such a walk is in practice: within the stack, and outwards.
NOINLINE static long by_frame_pointers(void) {
    uint64_t *frame = __builtin_frame_address(0);
    long count = 0;
    while ((char *)frame < bottom && count < MOST) {
        uint64_t *next = (uint64_t *)frame[0];
        found[count++] = (void *)frame[1];
        if (next <= frame)
            break;
        frame = next;
    }
    return count;
}

NOINLINE static void none(void) {
    __asm__ volatile("");
}

static int method;

// The ten innermost frames are others each time.
NOINLINE static long inner(int n, long which) {
    volatile long local[4];
    local[n & 3] = which;
    long result = 0;
    if (!n) {
        if (method == 6)
            callscope_capture((uint64_t)which);
        else
            none();
    } else if (which & 1) {
        result = inner(n - 1, which) + 1;
    } else {
        result = inner(n - 1, which) + 2;
    }
    return result + local[n & 3];
}

NOINLINE static double measure(void) {
    struct timespec begin, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    for (long i = 0; i < rounds; i++)
        switch (method) {
        case 0:
            none();
            break;
        case 1:
            callscope_capture((uint64_t)i);
            break;
        case 2:
            depth = by_frame_pointers();
            break;
        case 3:
            depth = backtrace(found, MOST);
            break;
#ifdef HAVE_LIBUNWIND
        case 4:
            depth = unw_backtrace(found, MOST);
            break;
#endif
        case 5:
        case 6:
            depth = inner(9, i);
            break;
        }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
}

// Frames as programs have them: with saved registers and locals.
NOINLINE static double nest(int n, long a, long b, long c) {
    volatile long local[8];
    local[n & 7] = a;
    double result = n > 1 ? nest(n - 1, b + n, c ^ a, a + local[n & 7]) : measure();
    local[(n + 1) & 7] = a + b + c;
    return result + (double)(local[(n + 1) & 7] & 0);
}

int main(int count, char **arguments) {
    static const char *const names[] = {"none", "capture", "pointers", "backtrace", "libunwind", "calls", "varied"};
    bottom = (char *)__builtin_frame_address(0) + 16;
    for (method = 0; method < 6 && (count < 2 || strcmp(names[method], arguments[1])); method++)
        ;
    int outer = method < 5 ? DEPTH - 1 : DEPTH - 11;
    rounds = 1000;
    nest(outer, count, 2, 3);
    rounds = count > 2 ? atol(arguments[2]) : 100000;
    double ns = nest(outer, count, 2, 3);
    printf("ns_per_call %.2f\nframes %ld\n", ns / (double)rounds, depth);
    return 0;
}

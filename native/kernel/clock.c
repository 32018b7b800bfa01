/* The time-stamp counter against the system's clocks. */
#define _POSIX_C_SOURCE 199309L
#include "kernel.h"
#include <stdint.h>
#include <time.h>
#include <x86intrin.h>

enum { CLOCK_TRIES = 32 };

static uint64_t nanoseconds(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now) != 0) {
        return 0;
    }
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

CS_EXPORT int cs_clock_pair(uint64_t out[3]);

/* out = {time-stamp counter, CLOCK_MONOTONIC ns, CLOCK_REALTIME ns}, all meant for one moment: of several tries the one
 * that took the fewest ticks, with the counter's value halfway. Returns 0, or 1 when the system has no such clock. */
CS_EXPORT int cs_clock_pair(uint64_t out[3]) {
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < CLOCK_TRIES; i++) {
        _mm_lfence();
        uint64_t before = __rdtsc();
        _mm_lfence();
        uint64_t monotonic = nanoseconds(CLOCK_MONOTONIC);
        uint64_t realtime = nanoseconds(CLOCK_REALTIME);
        _mm_lfence();
        uint64_t after = __rdtsc();
        if (monotonic == 0 || realtime == 0) {
            return 1;
        }
        if (after - before < best) {
            best = after - before;
            out[0] = before + best / 2;
            out[1] = monotonic;
            out[2] = realtime;
        }
    }
    return 0;
}

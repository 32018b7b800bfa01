/* The time-stamp counter against the system's clocks. */
#define _GNU_SOURCE
#include "kernel.h"
#include <stdint.h>
#include <sys/prctl.h>
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

CS_EXPORT uint64_t cs_counter_cost(uint64_t readings);

/* Nanoseconds that so many readings of the time-stamp counter take. */
CS_EXPORT uint64_t cs_counter_cost(uint64_t readings) {
    uint64_t start = nanoseconds(CLOCK_MONOTONIC), sum = 0;
    for (uint64_t i = 0; i < readings; i++) {
        sum += __rdtsc();
    }
    __asm__ volatile("" : : "r"(sum));
    return nanoseconds(CLOCK_MONOTONIC) - start;
}

/* The coarse clock of a session (schema.toml, EVENTS_CLOCK), and how it went. */
struct cs_ticking {
    uint64_t *clock;      /* in ticks of the time-stamp counter; agents move it on, too */
    uint64_t interval_ns; /* between two ticks, as far as the system lets us */
    uint64_t stop;        /* not 0: enough */
    uint64_t ticks;       /* so far */
    uint64_t longest;     /* most ticks of the counter between two of ours */
};

CS_EXPORT int cs_tick(struct cs_ticking *ticking);

/* Keep the clock until told to stop. Returns 0. */
CS_EXPORT int cs_tick(struct cs_ticking *ticking) {
    const struct timespec pause = {(time_t)(ticking->interval_ns / 1000000000u),
                                   (long)(ticking->interval_ns % 1000000000u)};
    uint64_t before = __rdtsc();
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* of this thread: 50 us otherwise */
    while (!__atomic_load_n(&ticking->stop, __ATOMIC_ACQUIRE)) {
        uint64_t now = __rdtsc(), seen = __atomic_load_n(ticking->clock, __ATOMIC_RELAXED);
        while (seen < now &&
               !__atomic_compare_exchange_n(ticking->clock, &seen, now, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
        }
        if (now - before > ticking->longest)
            ticking->longest = now - before;
        before = now;
        ticking->ticks++;
        nanosleep(&pause, NULL);
    }
    return 0;
}

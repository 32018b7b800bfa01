/* Calls as entries and exits in order of time, and those as Perfetto's packets: what exporters of events write. */
#include "kernel.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS_DONE, STEPS_FULL, STEPS_NO_MEMORY, TAIL_CALL = 1, FIRST_ROOM = 1024, MOST_VARINT = 10 };

/* Columns of calls of one thread, in order. Times in nanoseconds. */
struct cs_step_calls {
    const int64_t *call, *start, *duration, *descendants;
    const int32_t *function, *node;
    const uint8_t *ended_by;
    uint64_t count;
};

/* An entry or exit of a call, `depth` others being open around it. node: of the innermost call that is open then, -1
 * without one. */
struct cs_step {
    int64_t time, call;
    int32_t function;
    uint32_t depth;
    int32_t node;
    uint8_t is_entry, ended_by, unused[2];
};

struct open_call {
    int64_t call, end;
    uint64_t last; /* the last call of its subtree */
    int32_t function, node;
    uint8_t ended_by;
};

struct cs_steps {
    struct open_call *open;
    uint64_t depth, room;
    int64_t last_time;
    bool no_clock;
};

CS_EXPORT struct cs_steps *cs_steps_open(int no_clock);
CS_EXPORT void cs_steps_close(struct cs_steps *steps);
CS_EXPORT int cs_steps_feed(struct cs_steps *steps, const struct cs_step_calls *calls, uint64_t *at,
                            struct cs_step *out, uint64_t capacity, uint64_t *count);
CS_EXPORT uint64_t cs_step_packets(const struct cs_step *steps, const uint32_t *templates, uint64_t count,
                                   const uint64_t *offsets, const uint8_t *bytes, uint8_t *out);

/* Without a clock, the time of a step is its number in the thread. NULL when there is no memory. */
CS_EXPORT struct cs_steps *cs_steps_open(int no_clock) {
    struct cs_steps *steps = calloc(1, sizeof *steps);
    if (steps != NULL) {
        steps->no_clock = no_clock != 0;
    }
    return steps;
}

CS_EXPORT void cs_steps_close(struct cs_steps *steps) {
    if (steps != NULL) {
        free(steps->open);
        free(steps);
    }
}

/* Times of a thread never go back. */
static int64_t step_time(struct cs_steps *steps, int64_t wanted) {
    if (steps->no_clock) {
        return steps->last_time++;
    }
    if (wanted > steps->last_time) {
        steps->last_time = wanted;
    }
    return steps->last_time;
}

static struct cs_step leave(struct cs_steps *steps) {
    const struct open_call *open = &steps->open[--steps->depth];
    return (struct cs_step){.time = step_time(steps, open->end),
                            .call = open->call,
                            .function = open->function,
                            .depth = (uint32_t)steps->depth,
                            .node = steps->depth ? open[-1].node : -1,
                            .ended_by = open->ended_by};
}

static bool enter(struct cs_steps *steps, const struct open_call *call, int64_t start, struct cs_step *out) {
    if (steps->depth == steps->room) {
        uint64_t room = steps->room ? steps->room * 2 : FIRST_ROOM;
        struct open_call *grown = realloc(steps->open, room * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        steps->open = grown;
        steps->room = room;
    }
    *out = (struct cs_step){.time = step_time(steps, start),
                            .call = call->call,
                            .function = call->function,
                            .depth = (uint32_t)steps->depth,
                            .node = call->node,
                            .is_entry = 1,
                            .ended_by = call->ended_by};
    steps->open[steps->depth++] = *call;
    return true;
}

/* Whether the caller ended in a tail jump to this callee: its last one, which began when it had ended. */
static bool jumped(const struct cs_steps *steps, const struct open_call *caller, const struct open_call *callee,
                   int64_t start) {
    return caller->ended_by == TAIL_CALL && callee->last == caller->last && (steps->no_clock || start >= caller->end);
}

/* Go on with a thread's calls from *at on: properly nested steps, the innermost call left first; a function that ended
 * in a tail jump is left before the one it jumped to is entered. Without calls (`count` 0) the thread is over: all open
 * calls are left, and another may begin. Returns STEPS_DONE; STEPS_FULL when `out` (at least 2) had no room for more:
 * ask again; STEPS_NO_MEMORY. */
CS_EXPORT int cs_steps_feed(struct cs_steps *steps, const struct cs_step_calls *calls, uint64_t *at,
                            struct cs_step *out, uint64_t capacity, uint64_t *count) {
    uint64_t made = 0;
    int status = STEPS_DONE;
    bool over = calls->count == 0;
    while (status == STEPS_DONE && (over ? steps->depth > 0 : *at < calls->count)) {
        if (made + 2 > capacity) {
            status = STEPS_FULL;
            break;
        }
        if (over) {
            out[made++] = leave(steps);
            continue;
        }
        uint64_t number = (uint64_t)calls->call[*at];
        struct open_call *top = steps->depth ? &steps->open[steps->depth - 1] : NULL;
        if (top != NULL && top->last < number) {
            out[made++] = leave(steps);
            continue;
        }
        int64_t start = calls->start[*at];
        struct open_call call = {.call = (int64_t)number,
                                 .end = (int64_t)((uint64_t)start + (uint64_t)calls->duration[*at]),
                                 .last = number + (uint64_t)calls->descendants[*at],
                                 .function = calls->function[*at],
                                 .node = calls->node[*at],
                                 .ended_by = calls->ended_by[*at]};
        if (top != NULL && jumped(steps, top, &call, start)) {
            out[made++] = leave(steps);
        }
        if (!enter(steps, &call, start, &out[made])) {
            status = STEPS_NO_MEMORY;
            break;
        }
        made++;
        ++*at;
    }
    if (over && steps->depth == 0) {
        steps->last_time = 0;
    }
    *count = made;
    return status;
}

static uint8_t *put_varint(uint8_t *out, uint64_t value) {
    while (value > 0x7F) {
        *out++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

/* A packet a step: field 1 of a Trace (perfetto/trace/trace.proto) with field 8, the time, and the bytes of its
 * template, which lie from offsets[template] to offsets[template + 1]. `out` has room for these and 24 bytes a step.
 * Returns the bytes written. */
CS_EXPORT uint64_t cs_step_packets(const struct cs_step *steps, const uint32_t *templates, uint64_t count,
                                   const uint64_t *offsets, const uint8_t *bytes, uint8_t *out) {
    uint8_t *begin = out;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t time[1 + MOST_VARINT] = {8 << 3};
        uint64_t time_size = (uint64_t)(put_varint(time + 1, (uint64_t)steps[i].time) - time);
        uint64_t from = offsets[templates[i]], size = offsets[templates[i] + 1] - from;
        *out++ = 1 << 3 | 2;
        out = put_varint(out, time_size + size);
        memcpy(out, time, time_size);
        memcpy(out + time_size, bytes + from, size);
        out += time_size + size;
    }
    return (uint64_t)(out - begin);
}

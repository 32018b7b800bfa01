/* Calls as entries and exits in order of time, and those as Perfetto's packets: what exporters of events write. */
#include "kernel.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS_DONE, STEPS_FULL, STEPS_NO_MEMORY, STEPS_ONE, TAIL_CALL = 1, FIRST_ROOM = 1024, MOST_VARINT = 10 };

/* Columns of calls of one thread, in order. Times in nanoseconds. */
struct cs_step_calls {
    const int64_t *call, *up, *start, *duration, *descendants;
    const int32_t *function, *node;
    const uint8_t *ended_by;
    uint64_t count;
};

/* An entry or exit of a call, `depth` others being open around it. node: of the innermost call that is open then, -1
 * without one. is_switch: the call goes on, or waits; it has not begun or ended. */
struct cs_step {
    int64_t time, call;
    int32_t function;
    uint32_t depth;
    int32_t node;
    uint8_t is_entry, ended_by, is_switch, unused;
};

struct open_call {
    int64_t call, end;
    uint64_t last; /* the last call of its subtree */
    int32_t function, node;
    uint8_t ended_by;
};

/* Open calls of a coroutine or greenlet that waits, the outermost last. */
struct waiting {
    struct open_call *calls;
    uint64_t count, room;
};

struct cs_steps {
    struct open_call *open;
    uint64_t depth, room;
    struct waiting *waiting;
    uint64_t waiting_count, waiting_room;
    uint64_t resumed; /* number + 1 of the one whose calls go on one by one; 0: none */
    bool is_parting;  /* the last of `waiting` gets more calls */
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
        for (uint64_t i = 0; i < steps->waiting_count; i++) {
            free(steps->waiting[i].calls);
        }
        free(steps->waiting);
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

/* Room for one more element at the end of a growing array. */
static bool make_room(void *array, uint64_t count, uint64_t *room, size_t bytes, uint64_t first) {
    void **elements = array;
    if (count < *room) {
        return true;
    }
    uint64_t wanted = *room ? *room * 2 : first;
    void *grown = realloc(*elements, wanted * bytes);
    if (grown != NULL) {
        *elements = grown;
        *room = wanted;
    }
    return grown != NULL;
}

static bool enter(struct cs_steps *steps, const struct open_call *call, int64_t start, struct cs_step *out) {
    if (!make_room(&steps->open, steps->depth, &steps->room, sizeof *steps->open, FIRST_ROOM)) {
        return false;
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

/* Whether an open call lies around the innermost one. */
static bool is_around(const struct cs_steps *steps, int64_t call) {
    for (uint64_t i = steps->depth; i > 0; i--) {
        if (steps->open[i - 1].call == call) {
            return true;
        }
    }
    return false;
}

/* Number + 1 of the stack in which a call waits, or 0. */
static uint64_t where_waits(const struct cs_steps *steps, int64_t call) {
    for (uint64_t i = steps->waiting_count; i > 0; i--) {
        const struct waiting *stack = &steps->waiting[i - 1];
        for (uint64_t k = 0; k < stack->count; k++) {
            if (stack->calls[k].call == call) {
                return i;
            }
        }
    }
    return 0;
}

/* The innermost call waits from `time` on, with those that left just before it. */
static bool part(struct cs_steps *steps, int64_t time, struct cs_step *out) {
    if (!steps->is_parting) {
        if (!make_room(&steps->waiting, steps->waiting_count, &steps->waiting_room, sizeof *steps->waiting, 16)) {
            return false;
        }
        steps->waiting[steps->waiting_count++] = (struct waiting){NULL, 0, 0};
        steps->is_parting = true;
    }
    struct waiting *stack = &steps->waiting[steps->waiting_count - 1];
    if (!make_room(&stack->calls, stack->count, &stack->room, sizeof *stack->calls, 16)) {
        return false;
    }
    struct open_call *top = &steps->open[steps->depth - 1];
    stack->calls[stack->count++] = *top;
    int64_t end = top->end;
    top->end = time;
    *out = leave(steps);
    out->is_switch = 1;
    stack->calls[stack->count - 1].end = end;
    return true;
}

/* When the stack that is resumed went on: its innermost call, if that has ended by now, ended then. */
static int64_t resuming_time(const struct cs_steps *steps, uint64_t number, int64_t otherwise) {
    const struct open_call *innermost = steps->waiting[steps->resumed - 1].calls;
    return innermost->last < number ? innermost->end : otherwise;
}

/* The next call of the stack that is resumed goes on. */
static bool go_on(struct cs_steps *steps, int64_t time, struct cs_step *out) {
    struct waiting *stack = &steps->waiting[steps->resumed - 1];
    if (!enter(steps, &stack->calls[--stack->count], time, out)) {
        return false;
    }
    out->is_switch = 1;
    if (stack->count == 0) {
        free(stack->calls);
        *stack = steps->waiting[--steps->waiting_count];
        steps->resumed = 0;
    }
    return true;
}

/* When the calls inside of the caller began to wait: the outermost one that has ended then ended because of that. */
static int64_t parting_time(const struct cs_steps *steps, int64_t caller, uint64_t number, int64_t otherwise) {
    int64_t time = otherwise;
    for (uint64_t i = steps->depth; i > 0 && steps->open[i - 1].call != caller; i--) {
        if (steps->open[i - 1].last < number) {
            time = steps->open[i - 1].end;
        }
    }
    return time;
}

/* Whether the caller ended in a tail jump to this callee: its last one, which began when it had ended. */
static bool jumped(const struct cs_steps *steps, const struct open_call *caller, const struct open_call *callee,
                   int64_t start) {
    return caller->ended_by == TAIL_CALL && callee->last == caller->last && (steps->no_clock || start >= caller->end);
}

/* What comes before a thread's call can be entered, as STEPS_ONE; STEPS_DONE: nothing does. A caller that is open but
 * not the innermost call has those within it wait, one that waits goes on with its stack. */
static int prepare(struct cs_steps *steps, uint64_t number, int64_t caller, int64_t start, struct cs_step *out) {
    if (steps->resumed) {
        return go_on(steps, resuming_time(steps, number, start), out) ? STEPS_ONE : STEPS_NO_MEMORY;
    }
    const struct open_call *top = steps->depth ? &steps->open[steps->depth - 1] : NULL;
    if (top != NULL && top->last < number) {
        *out = leave(steps);
        return STEPS_ONE;
    }
    if (caller < 0 || (top != NULL && top->call == caller)) {
        return STEPS_DONE;
    }
    if (is_around(steps, caller)) {
        return part(steps, parting_time(steps, caller, number, start), out) ? STEPS_ONE : STEPS_NO_MEMORY;
    }
    steps->is_parting = false;
    steps->resumed = where_waits(steps, caller);
    return steps->resumed ? prepare(steps, number, caller, start, out) : STEPS_DONE;
}

/* The next step at a thread's end: all open calls are left, those that wait go on for that. */
static int wind_up(struct cs_steps *steps, struct cs_step *out) {
    if (!steps->resumed && steps->depth > 0) {
        *out = leave(steps);
        return STEPS_ONE;
    }
    if (!steps->resumed && steps->waiting_count > 0) {
        steps->resumed = steps->waiting_count;
    }
    if (!steps->resumed) {
        steps->last_time = 0;
        steps->is_parting = false;
        return STEPS_DONE;
    }
    return go_on(steps, steps->last_time, out) ? STEPS_ONE : STEPS_NO_MEMORY;
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
    while (over || *at < calls->count) {
        if (made + 2 > capacity) {
            status = STEPS_FULL;
            break;
        }
        if (over) {
            status = wind_up(steps, &out[made]);
            if (status != STEPS_ONE) {
                break;
            }
            made++;
            continue;
        }
        uint64_t number = (uint64_t)calls->call[*at];
        int64_t start = calls->start[*at], up = calls->up[*at];
        status = prepare(steps, number, up > 0 ? (int64_t)number - up : -1, start, &out[made]);
        if (status == STEPS_ONE) {
            status = STEPS_DONE;
            made++;
            continue;
        }
        steps->is_parting = false;
        struct open_call call = {.call = (int64_t)number,
                                 .end = (int64_t)((uint64_t)start + (uint64_t)calls->duration[*at]),
                                 .last = number + (uint64_t)calls->descendants[*at],
                                 .function = calls->function[*at],
                                 .node = calls->node[*at],
                                 .ended_by = calls->ended_by[*at]};
        const struct open_call *top = steps->depth ? &steps->open[steps->depth - 1] : NULL;
        if (status == STEPS_DONE && top != NULL && jumped(steps, top, &call, start)) {
            out[made++] = leave(steps);
        }
        if (status == STEPS_NO_MEMORY || !enter(steps, &call, start, &out[made])) {
            status = STEPS_NO_MEMORY;
            break;
        }
        made++;
        ++*at;
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

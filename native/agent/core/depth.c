/* The depth filter: which calls lie less deep than the session's limit, among those that filter.c lets pass.
 *
 * A thread's open calls are kept as the stack pointers at their entries, one array for each stack it runs on (lane):
 * its own, a signal stack, coroutines. A frame lives until something runs above it, so calls left by an exception or a
 * longjmp are dropped when the next event comes from a higher address. Only calls that are recorded are kept, so an
 * array never outgrows the limit. Whether two addresses belong to one stack is judged by distance. */
#include "agent.h"
#include "system.h"

#define LANES 16
#define NEAR 0x10000ull /* a step down within a stack that needs no search */
#define SAME_STACK 0x100000ull
#define LARGEST_DEPTH 0x100000u

struct lane {
    uint64_t last, low, high; /* stack pointers seen: the latest, the extremes */
    uint32_t depth;
    uint32_t age;
    uint64_t *open;
    struct cs_filter filter;
};

struct lanes {
    struct lane *current;
    uint32_t clock;
    uint32_t limit;
    uint32_t passed;
    struct lane lane[LANES];
};

static struct lanes *new_lanes(void) {
    struct lanes *lanes = cs_system_memory(sizeof *lanes);
    if (!lanes)
        return NULL;
    bool limited = cs_session.max_depth && cs_session.max_depth < LARGEST_DEPTH;
    lanes->limit = limited ? cs_session.max_depth : LARGEST_DEPTH;
    lanes->current = lanes->lane;
    cs_self()->lanes = lanes;
    if (cs_self()->block->used)
        cs_self()->block->lanes = lanes;
    return lanes;
}

static uint64_t distance(const struct lane *lane, uint64_t sp) {
    if (sp < lane->low)
        return lane->low - sp;
    return sp > lane->high ? sp - lane->high : 0;
}

static struct lane *find_lane(struct lanes *lanes, uint64_t sp) {
    struct lane *best = NULL, *oldest = lanes->lane;
    uint64_t least = SAME_STACK;
    for (struct lane *lane = lanes->lane; lane < lanes->lane + LANES; lane++) {
        if (lane->open && distance(lane, sp) < least) {
            least = distance(lane, sp);
            best = lane;
        }
        if (lane->age < oldest->age)
            oldest = lane;
    }
    if (!best) {
        best = oldest;
        if (!best->open)
            best->open = cs_system_memory(lanes->limit * sizeof *best->open);
        if (!best->open)
            return NULL;
        best->depth = 0;
        best->filter.root = best->filter.count = 0;
        best->low = best->high = sp;
    }
    best->age = ++lanes->clock;
    lanes->current = best;
    return best;
}

/* The lane of `sp`, noted as its latest address; NULL without memory. */
static struct lane *lane_of(uint64_t sp) {
    struct lanes *lanes = cs_self()->lanes;
    if (!lanes && !(lanes = new_lanes()))
        return NULL;
    struct lane *lane = lanes->current;
    if (!lane->open || sp > lane->high || sp + NEAR < lane->last)
        if (!(lane = find_lane(lanes, sp)))
            return NULL;
    lane->last = sp;
    if (sp < lane->low)
        lane->low = sp;
    if (sp > lane->high)
        lane->high = sp;
    return lane;
}

bool cs_depth_enter(uint64_t sp, uint32_t function) {
    struct lane *lane = lane_of(sp);
    if (!lane || !cs_filter_enter(&lane->filter, sp, function, &((struct lanes *)cs_self()->lanes)->passed))
        return false;
    if (!cs_session.max_depth)
        return true;
    uint32_t depth = lane->depth;
    while (depth && lane->open[depth - 1] <= sp)
        depth--;
    if (depth >= ((struct lanes *)cs_self()->lanes)->limit) {
        lane->depth = depth;
        return false;
    }
    /* A signal may come between the two: what it kept and dropped again is overwritten by the second store. */
    volatile uint64_t *slot = &lane->open[depth];
    *slot = sp;
    *(volatile uint32_t *)&lane->depth = depth + 1;
    *slot = sp;
    return true;
}

bool cs_depth_leave(uint64_t sp) {
    struct lane *lane = lane_of(sp);
    if (!lane || !cs_filter_leave(&lane->filter, sp))
        return false;
    if (!cs_session.max_depth)
        return true;
    uint32_t depth = lane->depth;
    while (depth && lane->open[depth - 1] < sp)
        depth--;
    bool recorded = depth && lane->open[depth - 1] == sp;
    lane->depth = recorded ? depth - 1 : depth;
    return recorded;
}

bool cs_depth_inside(uint64_t sp) {
    const struct lane *lane = lane_of(sp);
    if (!lane || !cs_filter_inside(&lane->filter, sp))
        return false;
    if (!cs_session.max_depth)
        return true;
    uint32_t depth = lane->depth;
    while (depth && lane->open[depth - 1] <= sp)
        depth--;
    return depth < ((struct lanes *)cs_self()->lanes)->limit;
}

void cs_depth_free(void *memory) {
    struct lanes *lanes = memory;
    if (!lanes)
        return;
    for (struct lane *lane = lanes->lane; lane < lanes->lane + LANES; lane++) {
        if (lane->open)
            cs_system_release(lane->open, lanes->limit * sizeof *lane->open);
        cs_filter_free(&lane->filter);
    }
    cs_system_release(lanes, sizeof *lanes);
}

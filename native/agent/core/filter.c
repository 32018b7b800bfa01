/* What lies within, below or above calls of certain functions, and samples of subtrees.
 *
 * A call of a function that begins a subtree is its root: until something runs at or above its stack pointer, every
 * call of that stack lies below it. For what leads to certain functions, entries wait until one of those is called:
 * then all that are open are written, with the times at which they happened. */
#include "agent.h"
#include "system.h"

#define ROLE_LIMIT 0x4000000u /* function ids beyond have no role */
#define WAITING 16384u        /* open calls of a stack that are kept; deeper ones are not recorded */

struct cs_waiting {
    uint64_t sp, time;
    uint32_t function, return_address;
    bool written;
};

static uint8_t *all_roles;

void cs_filter_roles(const uint8_t *roles, uint32_t count, uint32_t id_base) {
    if (!all_roles)
        all_roles = cs_system_memory(ROLE_LIMIT);
    for (uint32_t i = 0; all_roles && i < count && id_base + i < ROLE_LIMIT; i++)
        all_roles[id_base + i] = roles[i];
}

static uint32_t role_of(uint32_t function) {
    return all_roles && function < ROLE_LIMIT ? all_roles[function] : 0;
}

/* Whether a call outside of any subtree begins one. */
static bool begins(struct cs_filter *filter, uint64_t sp, uint32_t role, uint32_t *passed) {
    bool by_role = cs_session.filters & (CS_FILTER_TRIGGER | CS_FILTER_UNDER);
    if (by_role && !(role & (CS_ROLE_TRIGGER | CS_ROLE_UNDER)))
        return false;
    if (cs_session.sample && (*passed)++ % cs_session.sample)
        return false;
    filter->root = sp;
    filter->hides = by_role && !(role & CS_ROLE_TRIGGER);
    return true;
}

static void write_waiting(const struct cs_waiting *waiting) {
    uint32_t time, *slot = cs_reserve(waiting->sp, sizeof(struct cs_entry_event), &time);
    uint32_t epoch = cs_self()->block->epoch; /* of the chunk: an earlier time cannot be told in it */
    slot[0] = waiting->time >> 32 == epoch ? (uint32_t)waiting->time : 0;
    __atomic_store_n(&slot[1], (uint32_t)waiting->sp | CS_EVENT_ENTRY, __ATOMIC_RELEASE);
    slot[3] = waiting->return_address;
    slot[2] = waiting->function;
}

static void drop_below(struct cs_filter *filter, uint64_t sp) {
    while (filter->count && filter->waiting[filter->count - 1].sp < sp)
        filter->count--;
}

/* Of what leads to certain functions: whether this is one of them. The routine writes its entry. */
static bool wait_or_write(struct cs_filter *filter, uint64_t sp, uint32_t function) {
    if (!filter->waiting)
        filter->waiting = cs_system_memory(WAITING * sizeof *filter->waiting);
    if (!filter->waiting)
        return false;
    drop_below(filter, sp + 1);
    if (filter->count == WAITING)
        return false;
    bool wanted = role_of(function) & CS_ROLE_CALLER;
    for (uint32_t i = 0; wanted && i < filter->count; i++)
        if (!filter->waiting[i].written) {
            filter->waiting[i].written = true;
            write_waiting(&filter->waiting[i]);
        }
    filter->waiting[filter->count++] =
        (struct cs_waiting){sp, cs_now(), function, (uint32_t)*(const uint64_t *)sp, wanted};
    return wanted;
}

bool cs_filter_enter(struct cs_filter *filter, uint64_t sp, uint32_t function, uint32_t *passed) {
    if (cs_session.filters & CS_FILTER_CALLER)
        return wait_or_write(filter, sp, function);
    if (!cs_session.filters && !cs_session.sample)
        return true;
    if (filter->root && sp >= filter->root)
        filter->root = 0;
    return filter->root || (begins(filter, sp, role_of(function), passed) && !filter->hides);
}

bool cs_filter_leave(struct cs_filter *filter, uint64_t sp) {
    if (cs_session.filters & CS_FILTER_CALLER) {
        drop_below(filter, sp);
        if (!filter->count || filter->waiting[filter->count - 1].sp != sp)
            return false;
        return filter->waiting[--filter->count].written;
    }
    if (!cs_session.filters && !cs_session.sample)
        return true;
    uint64_t root = filter->root;
    if (sp >= root)
        filter->root = 0;
    return sp < root || (root && sp == root && !filter->hides);
}

bool cs_filter_inside(const struct cs_filter *filter, uint64_t sp) {
    if (cs_session.filters & CS_FILTER_CALLER)
        return false;
    return (!cs_session.filters && !cs_session.sample) || sp < filter->root;
}

void cs_filter_free(struct cs_filter *filter) {
    if (filter->waiting)
        cs_system_release(filter->waiting, WAITING * sizeof *filter->waiting);
}

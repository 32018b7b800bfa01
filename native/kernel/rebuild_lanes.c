/* Stack regions of one thread ("lanes"): the main stack, signal stacks, coroutines. Which one does an event belong to?
 */
#include <stdlib.h>
#include <string.h>

#include "rebuild_state.h"

enum { LANES_KEPT = 16 }; /* from this many on, an empty lane is used again rather than a new one made */

/* The last frame whose stack pointer is at or above sp, or -1. The lane is not empty. */
int64_t cs_lane_find(const struct cs_lane *lane, uint32_t sp) {
    uint32_t base = lane->frames[0].sp;
    uint32_t below = base - sp;
    if (below >> 31) {
        return -1;
    }
    if (base - lane->frames[lane->count - 1].sp <= below) {
        return lane->count - 1;
    }
    uint32_t low = 0, high = lane->count - 1; /* frames[low] is at or above, frames[high] below */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (base - lane->frames[middle].sp <= below) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Bytes between sp and the lane: to the next frame above it, else to the outermost frame, else to where the lane was.
 */
uint32_t cs_lane_distance(const struct cs_lane *lane, uint32_t sp) {
    if (lane->count == 0) {
        uint32_t apart = lane->near - sp;
        return apart < -apart ? apart : -apart;
    }
    int64_t at = cs_lane_find(lane, sp);
    return at >= 0 ? lane->frames[at].sp - sp : sp - lane->frames[0].sp;
}

/* Whether open frames lie on both sides of sp. */
bool cs_lane_covers(const struct cs_lane *lane, uint32_t sp) {
    if (lane->count == 0) {
        return false;
    }
    uint32_t base = lane->frames[0].sp;
    return !((base - sp) >> 31) && base - lane->frames[lane->count - 1].sp >= base - sp;
}

/* The last frame of `owner` that begins exactly at sp, or -1. */
static int32_t find_exact(const struct cs_lane *lane, uint32_t sp, uint32_t owner) {
    if (lane->count == 0) {
        return -1;
    }
    for (int64_t i = cs_lane_find(lane, sp); i >= 0 && lane->frames[i].sp == sp; i--) {
        if (lane->frames[i].owner == owner) {
            return (int32_t)i;
        }
    }
    return -1;
}

/* The nearest frame of `owner` that begins above sp, by less than `reach`; or -1. */
static int32_t find_nearest(const struct cs_lane *lane, uint32_t sp, uint32_t owner, uint32_t reach) {
    if (lane->count == 0) {
        return -1;
    }
    int64_t i = cs_lane_find(lane, sp);
    for (int steps = 0; i >= 0 && steps < CS_SEARCH_LIMIT; i--, steps++) {
        uint32_t apart = lane->frames[i].sp - sp;
        if (apart >= reach) {
            break;
        }
        if (apart != 0 && lane->frames[i].owner == owner) {
            return (int32_t)i;
        }
    }
    return -1;
}

static struct cs_place find_everywhere(const struct cs_rebuild *s, uint32_t sp, uint32_t owner) {
    for (uint32_t k = 0; k < s->lane_count; k++) {
        int32_t at = find_exact(s->lanes[s->order[k]], sp, owner);
        if (at >= 0) {
            return (struct cs_place){s->order[k], at};
        }
    }
    return (struct cs_place){CS_NO_NODE, -1};
}

static struct cs_place caller_by_rsp(const struct cs_rebuild *s, uint32_t sp, const struct cs_site_state *site) {
    struct cs_place place = find_everywhere(s, sp + site->offset, site->function);
    if (place.parent < 0) {
        /* A frame of the caller nearer than the call frame information says: rather believe the frame. */
        place = (struct cs_place){s->order[0], find_nearest(cs_current(s), sp, site->function, site->offset)};
    }
    return place;
}

static struct cs_place caller_by_function(const struct cs_rebuild *s, uint32_t sp, const struct cs_site_state *site) {
    struct cs_place best = {CS_NO_NODE, -1};
    uint32_t least = CS_REACH;
    for (uint32_t k = 0; k < s->lane_count; k++) {
        const struct cs_lane *lane = s->lanes[s->order[k]];
        int32_t at = find_nearest(lane, sp, site->function, least);
        if (at >= 0) {
            best = (struct cs_place){s->order[k], at};
            least = lane->frames[at].sp - sp;
            if (k == 0 && least <= CS_NEAR) {
                break;
            }
        }
    }
    return best;
}

/* The current lane, for a signal handler's first call: not where that would end the frames that the signal interrupted,
 * for then the alternate stack lies inside of one of them. The exception is the start of the same stack again. */
static bool signal_fits(const struct cs_lane *lane, uint32_t sp) {
    if (lane->count == 0 || lane->frames[0].sp == sp) {
        return true;
    }
    uint32_t base = lane->frames[0].sp;
    return !((base - sp) >> 31) && base - lane->frames[lane->count - 1].sp < base - sp;
}

static uint32_t new_lane(struct cs_rebuild *s, uint32_t sp) {
    uint32_t index = CS_NO_NODE;
    if (s->lane_count >= LANES_KEPT) {
        for (uint32_t k = s->lane_count - 1; k > 0 && index == CS_NO_NODE; k--) {
            if (s->lanes[s->order[k]]->count == 0) {
                index = s->order[k];
            }
        }
    }
    s->lanes_made++;
    if (index == CS_NO_NODE && s->lane_count < CS_LANE_LIMIT) {
        struct cs_lane *lane = calloc(1, sizeof *lane);
        if (lane == NULL) {
            cs_fail(s, CS_REBUILD_NO_MEMORY);
            return s->order[0];
        }
        *lane = (struct cs_lane){.near = sp, .from = -1};
        index = s->lane_count++;
        s->lanes[index] = lane;
        s->order[index] = (uint16_t)index;
        return index;
    }
    if (index == CS_NO_NODE) {
        index = s->order[s->lane_count - 1];
        cs_frames_clear(s, s->lanes[index], CS_ENDED_UNWOUND);
    }
    for (uint32_t i = 0; i < s->lane_count; i++) {
        if (s->lanes[i]->from == (int32_t)index) {
            s->lanes[i]->from = -1;
        }
    }
    s->lanes[index]->near = sp;
    s->lanes[index]->from = -1;
    return index;
}

/* The lane of the stack pointer `sp` by nearness alone, or CS_NO_NODE. */
static uint32_t lane_near(const struct cs_rebuild *s, uint32_t sp, bool with_current) {
    for (uint32_t k = with_current ? 0 : 1; k < s->lane_count; k++) {
        if (cs_lane_distance(s->lanes[s->order[k]], sp) <= CS_NEAR) {
            return s->order[k];
        }
    }
    for (uint32_t k = with_current ? 0 : 1; k < s->lane_count; k++) {
        if (cs_lane_covers(s->lanes[s->order[k]], sp)) {
            return s->order[k];
        }
    }
    return CS_NO_NODE;
}

/* Where an ENTRY at `sp` belongs, and the frame it was called from as far as it is certain. */
struct cs_place cs_lanes_of_entry(struct cs_rebuild *s, uint32_t sp, const struct cs_site_state *site) {
    if (site->function != 0 && site->function < s->in.function_limit && s->open[site->function] > 0) {
        struct cs_place place = {CS_NO_NODE, -1};
        if (site->kind == CS_SITE_RSP) {
            place = caller_by_rsp(s, sp, site);
        } else if (site->kind == CS_SITE_RBP) {
            place = caller_by_function(s, sp, site);
        }
        if (place.parent >= 0) {
            return place;
        }
    }
    uint32_t probe = site->kind == CS_SITE_RSP ? sp + site->offset : sp;
    bool with_current = !site->is_signal || signal_fits(cs_current(s), sp);
    uint32_t lane = lane_near(s, probe, with_current);
    return (struct cs_place){lane != CS_NO_NODE ? lane : new_lane(s, sp), -1};
}

/* The last frame that begins exactly at `sp`; parent -1 when there is none. */
struct cs_place cs_lanes_of_frame(struct cs_rebuild *s, uint32_t sp) {
    for (uint32_t k = 0; k < s->lane_count; k++) {
        const struct cs_lane *lane = s->lanes[s->order[k]];
        if (lane->count != 0) {
            int64_t at = cs_lane_find(lane, sp);
            if (at >= 0 && lane->frames[at].sp == sp) {
                return (struct cs_place){s->order[k], (int32_t)at};
            }
        }
    }
    return (struct cs_place){CS_NO_NODE, -1};
}

uint32_t cs_lanes_near(const struct cs_rebuild *s, uint32_t sp) {
    return lane_near(s, sp, true);
}

static void to_front(struct cs_rebuild *s, uint32_t lane) {
    uint32_t k = 0;
    while (s->order[k] != lane) {
        k++;
    }
    memmove(s->order + 1, s->order, k * sizeof *s->order);
    s->order[0] = (uint16_t)lane;
}

/* Whether the current lane was entered, directly or through others, from `lane`. */
static bool is_above(const struct cs_rebuild *s, uint32_t lane) {
    int32_t at = cs_current(s)->from;
    for (uint32_t k = 0; at >= 0 && k < s->lane_count; k++, at = s->lanes[at]->from) {
        if ((uint32_t)at == lane) {
            return true;
        }
    }
    return false;
}

/* Control is in `lane` now. Going back to a lane that the current one was entered from ends the lanes between, unless
 * they are known to be resumed later. Going to another lane with open frames resumes it. */
void cs_lanes_enter(struct cs_rebuild *s, uint32_t index) {
    if (s->order[0] == index) {
        return;
    }
    struct cs_lane *lane = s->lanes[index];
    if (lane->count != 0 && is_above(s, index)) {
        for (uint32_t at = s->order[0]; at != index;) {
            struct cs_lane *left = s->lanes[at];
            at = (uint32_t)left->from;
            s->left += left->count != 0;
            if (!s->in.learning) {
                cs_frames_clear(s, left, CS_ENDED_UNWOUND);
                left->from = -1;
            }
        }
    } else if (lane->count != 0 && lane->from >= 0) {
        if (!cs_append64(&s->resumed, lane->frames[0].call)) {
            cs_fail(s, CS_REBUILD_NO_MEMORY);
        }
        lane->from = -1;
    }
    to_front(s, index);
}

void cs_lanes_switch(struct cs_rebuild *s, uint32_t sp, uint32_t origin, uint32_t target) {
    struct cs_lane *left = cs_current(s);
    if (left->stack == 0) {
        left->stack = origin;
    }
    if (left->stack == target) {
        return;
    }
    for (uint32_t k = 1; k < s->lane_count; k++) {
        struct cs_lane *lane = s->lanes[s->order[k]];
        if (lane->stack == target && lane->count != 0) {
            to_front(s, s->order[k]);
            return;
        }
    }
    uint32_t from = s->order[0], index = new_lane(s, sp);
    struct cs_lane *lane = s->lanes[index];
    lane->stack = target;
    lane->from = left->count != 0 ? (int32_t)from : -1;
    lane->is_cut = 0;
    to_front(s, index);
}

/* The current lane ran to its end: control is back where it was entered from. */
void cs_lanes_leave_empty(struct cs_rebuild *s) {
    for (uint32_t k = 0; k < s->lane_count && cs_current(s)->count == 0 && cs_current(s)->from >= 0; k++) {
        struct cs_lane *lane = cs_current(s);
        to_front(s, (uint32_t)lane->from);
        lane->from = -1;
    }
}

/* Calls of interpreted functions, as a recorder inside of the interpreter tells of them.
 *
 * Many of them may run in one native frame, the interpreter's loop, which is as a rule not traced. Their events carry a
 * stack pointer from below that frame. So a script's frame is given one a little above that, but below the native frame
 * it runs in: native calls made from it lie below, and it ends by its own event or with what is outside of it. */
#include <stddef.h>

#include "rebuild_state.h"

enum {
    LOOP_REACH = 4 << 10, /* from the recorder's event up to where calls from the interpreter's loop begin */
    BETWEEN = 7,          /* no native stack pointer ends so: they are multiples of 8 */
};

static struct cs_lane *lane_of(struct cs_rebuild *s, uint32_t sp) {
    struct cs_lane *lane = cs_current(s);
    if (lane->stack == 0 && (lane->count == 0 || cs_lane_distance(lane, sp) > CS_NEAR)) {
        uint32_t near = cs_lanes_near(s, sp);
        if (near != CS_NO_NODE) {
            lane = s->lanes[near];
            cs_lanes_enter(s, near);
        }
    }
    return lane;
}

void cs_script_entry(struct cs_rebuild *s, uint32_t sp, uint32_t function) {
    struct cs_lane *lane = lane_of(s, sp);
    cs_frames_pop_below(s, lane, sp);
    uint32_t at = sp + LOOP_REACH + BETWEEN;
    if (lane->count != 0) {
        const struct cs_frame *top = &lane->frames[lane->count - 1];
        uint32_t highest = top->marks & CS_FRAME_SCRIPT ? top->sp : top->sp - (8 - BETWEEN);
        at = highest - sp < at - sp ? highest : at;
    }
    cs_frames_push_script(s, lane, at, function);
}

void cs_script_exit(struct cs_rebuild *s, uint32_t sp, uint32_t function, unsigned ended_by) {
    struct cs_lane *lane = lane_of(s, sp);
    cs_frames_pop_below(s, lane, sp);
    uint32_t at = lane->count;
    for (int steps = 0; at > 0 && steps < CS_SEARCH_LIMIT; steps++) {
        const struct cs_frame *frame = &lane->frames[--at];
        bool is_script = frame->marks & CS_FRAME_SCRIPT;
        if (is_script && frame->function == function) {
            while (lane->count > at + 1) {
                cs_frames_pop(s, lane, CS_ENDED_UNWOUND);
            }
            cs_frames_pop(s, lane, ended_by);
            lane->is_cut = 0;
            return;
        }
        if (!is_script && frame->sp - sp > LOOP_REACH) {
            break;
        }
    }
    s->unmatched++;
}

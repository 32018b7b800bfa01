/* Inlined calls, as the compiler's hooks tell of them (gcc's manual, -finstrument-functions).
 *
 * Such a call has no return address and no stack pointer of its own: it is a stretch of the code of the function around
 * it, between two calls of hooks. Its frame lies just below that of the function whose code it is, above all that is
 * called from there (where the hook was called does not tell: between calls code may move the stack pointer up again),
 * and ends by its own hook, or with that function. The hooks tell of the functions themselves too:
 * where a function's entry was recorded, the first hook of each call that names the function is that entry again. */
#include <stddef.h>

#include "rebuild_state.h"

#define BELOW_CODE 4 /* stack pointers of all else are multiples of 8 */

static bool is_left_out(const struct cs_rebuild *s, uint32_t function) {
    return function < s->in.function_limit && s->in.function_flags[function] & CS_FUNCTION_LEFT_OUT;
}

/* The current lane, if code with that stack pointer may run on it; else another. */
static struct cs_lane *lane_of(struct cs_rebuild *s, uint32_t sp) {
    struct cs_lane *lane = cs_current(s);
    const struct cs_frame *code = cs_lane_code(lane);
    if (code == NULL || code->sp - sp > CS_NEAR) {
        uint32_t near = cs_lanes_near(s, sp);
        if (near != CS_NO_NODE) {
            lane = s->lanes[near];
            cs_lanes_enter(s, near);
        }
    }
    return lane;
}

void cs_inline_entry(struct cs_rebuild *s, uint32_t sp, uint32_t function, uint32_t site_index) {
    const struct cs_site_state *site = &s->site_states[site_index];
    struct cs_lane *lane = lane_of(s, sp);
    cs_frames_pop_below(s, lane, sp);
    struct cs_frame *code = cs_lane_code(lane);
    bool is_inside = code != NULL && code->owner == site->function;
    if (is_inside && (code->function == function || code->can & CS_FUNCTION_HOOKED) &&
        !(code->marks & CS_FRAME_HOOKED)) {
        code->marks |= CS_FRAME_HOOKED;
        return;
    }
    if (is_left_out(s, function)) {
        return;
    }
    const struct cs_frame *top = lane->count != 0 ? &lane->frames[lane->count - 1] : NULL;
    uint32_t place = is_inside ? code->sp - BELOW_CODE : sp;
    if (top != NULL && top->marks & CS_FRAME_INLINE) {
        if (top->chain >= CS_CHAIN_LIMIT) {
            s->too_deep++;
            return;
        }
        is_inside = is_inside || s->site_states[top->site].function == site->function;
    }
    cs_frames_push_inline(s, lane, place, function, site_index, top != NULL && !is_inside);
}

void cs_inline_exit(struct cs_rebuild *s, uint32_t sp, uint32_t function) {
    struct cs_lane *lane = lane_of(s, sp);
    uint32_t at = lane->count, steps = 0;
    while (at > 0 && steps++ < CS_SEARCH_LIMIT) {
        const struct cs_frame *frame = &lane->frames[--at];
        if (frame->marks & CS_FRAME_INLINE) {
            if (frame->function == function) {
                while (lane->count > at + 1) {
                    cs_frames_pop(s, lane, CS_ENDED_UNWOUND);
                }
                cs_frames_pop(s, lane, CS_ENDED_RETURN);
                return;
            }
        } else if ((int32_t)(frame->sp - sp) >= 0) {
            return; /* of the function itself, whose end is recorded, or of one that is left out */
        }
    }
}

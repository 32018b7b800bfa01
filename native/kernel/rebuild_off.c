/* Stretches without recording: what was open before may have ended unseen, so no call after one is taken for its child.
 */
#include <stddef.h>

#include "rebuild.h"
#include "rebuild_state.h"

bool cs_off_covers(struct cs_rebuild *s, uint64_t time) {
    while (s->off < s->in.off_count) {
        const struct cs_off_span *span = &s->in.offs[s->off];
        if (time < span->off_tsc) {
            return false;
        }
        if (!s->off_seen) {
            s->off_seen = true;
            if (s->has_time) {
                cs_pass_time(s, span->off_tsc);
            }
            for (uint32_t i = 0; i < s->lane_count; i++) {
                cs_frames_clear(s, s->lanes[i], CS_ENDED_OFF);
            }
        }
        if (time < span->on_tsc) {
            return true;
        }
        s->off++;
        s->off_seen = false;
    }
    return false;
}

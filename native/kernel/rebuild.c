/* Events -> calls: the loop over events, and what Python calls. */
#include "rebuild.h"

#include <stdlib.h>
#include <string.h>

#include "rebuild_state.h"

CS_EXPORT int cs_rebuild_open(const struct cs_rebuild_input *input, struct cs_rebuild **out) {
    *out = NULL;
    if (input->tick_limit > INT64_MAX ||
        (input->function_limit != 0 && (!input->function_flags || !input->function_owner || !input->function_out))) {
        return CS_REBUILD_BAD_ARGUMENT;
    }
    struct cs_rebuild *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return CS_REBUILD_NO_MEMORY;
    }
    s->in = *input;
    s->epoch = input->origin_tsc >> 32;
    s->now = s->last = input->origin_tsc;
    s->lanes[0] = calloc(1, sizeof *s->lanes[0]);
    s->lane_count = 1;
    s->open = calloc(input->function_limit + 1, sizeof *s->open);
    s->facts = calloc(input->function_limit + 1, sizeof *s->facts);
    int status = s->lanes[0] && s->open && s->facts ? CS_REBUILD_OK : CS_REBUILD_NO_MEMORY;
    status = status ? status : cs_paths_start(&s->paths, CS_PATH_DEPTH, CS_PATH_NODES, CS_PATH_NODES_FULL);
    status = status ? status : cs_buckets_start(&s->buckets);
    status = status ? status : cs_sites_start(s);
    if (status != CS_REBUILD_OK) {
        cs_rebuild_close(s);
        return status;
    }
    s->lanes[0]->from = -1;
    *out = s;
    return CS_REBUILD_OK;
}

CS_EXPORT void cs_rebuild_close(struct cs_rebuild *s) {
    if (s == NULL) {
        return;
    }
    for (uint32_t i = 0; i < s->lane_count; i++) {
        if (s->lanes[i]) {
            free(s->lanes[i]->frames);
            free(s->lanes[i]);
        }
    }
    cs_paths_free(&s->paths);
    free(s->buckets.slots);
    free(s->sites);
    free(s->site_states);
    free(s->site_slots);
    free(s->late);
    free(s->captured);
    free(s->out.items);
    free(s->assumed.items);
    free(s->resumed.items);
    free(s->open);
    free(s->facts);
    free(s);
}

/* The high half of the times that follow. One far from the session's own times is damaged, and the last one holds on.
 */
static void set_epoch(struct cs_rebuild *s, uint64_t epoch) {
    uint64_t time = epoch << 32;
    uint64_t apart = time > s->in.origin_tsc ? time - s->in.origin_tsc : s->in.origin_tsc - time;
    if (epoch >> 32 || apart > s->in.tick_limit) {
        s->unknown++;
    } else {
        s->epoch = epoch;
    }
}

/* The time since the last event belongs to the frame that was running. Within a thread time never goes back: an event
 * reserved before a signal handler ran may carry a later time than the handler's. */
static inline void pass_time(struct cs_rebuild *s, uint64_t time) {
    s->now = time > s->now ? time : s->now;
    uint64_t passed = s->now - s->last;
    if (passed == 0) {
        return;
    }
    s->last = s->now;
    struct cs_lane *lane = cs_current(s);
    int64_t at = (int64_t)lane->count - 1;
    /* After a tail jump, or in something untraced that it led to, the caller of the chain pays. */
    for (int hops = 0; at >= 0 && hops < CS_HOP_LIMIT; hops++) {
        struct cs_frame *frame = &lane->frames[at];
        if (!(frame->marks & CS_FRAME_MARKED)) {
            frame->self += (int64_t)passed;
            return;
        }
        at -= frame->chain;
    }
}

void cs_pass_time(struct cs_rebuild *s, uint64_t time) {
    pass_time(s, time);
}

/* Advance the clock to an event's time. */
static inline void advance(struct cs_rebuild *s, uint32_t low) {
    uint64_t time = s->in.no_clock ? s->in.origin_tsc : s->epoch << 32 | low;
    s->events++;
    if (!s->has_time) {
        s->has_time = true;
        s->now = s->last = s->earliest = time;
        return;
    }
    pass_time(s, time);
}

/* Where an event says its time, in words; 0 for one that says none, or has `time` in the first. */
static uint32_t time_word(const uint32_t event[2]) {
    uint32_t type = event[0];
    if ((event[1] & CS_EVENT_KIND_MASK) != CS_EVENT_EXTENDED) {
        return 0;
    }
    bool is_timed = type == CS_EXTENDED_INLINE_ENTRY || type == CS_EXTENDED_INLINE_EXIT ||
                    type == CS_EXTENDED_SCRIPT_SWITCH || (type & CS_LAST_FUNCTION) >= CS_SCRIPT_FIRST;
    return is_timed && event[1] >> 3 >= 2 ? 2 : 0;
}

/* The bytes of an event that lies where recording was off; 0 for one that counts. */
static uint64_t dropped(struct cs_rebuild *s, const uint32_t event[2], const uint8_t *bytes, uint64_t left) {
    uint32_t kind = event[1] & CS_EVENT_KIND_MASK, word = time_word(event), low = event[0];
    uint64_t size = kind == CS_EVENT_ENTRY || kind == CS_EVENT_CALL ? 16 : 8;
    if (kind == CS_EVENT_NONE || kind == CS_EVENT_CONTROL || (kind == CS_EVENT_EXTENDED && word == 0)) {
        return 0;
    }
    if (kind == CS_EVENT_EXTENDED) {
        size = (uint64_t)(event[1] >> 3) * 8;
        if (size > left) {
            return 0;
        }
        memcpy(&low, bytes + 4 * word, sizeof low);
    }
    uint64_t time = s->epoch << 32 | low;
    if (size > left || !cs_off_covers(s, time > s->now ? time : s->now)) {
        return 0;
    }
    s->entered = 0;
    s->result.kind = 0;
    return size;
}

static inline uint32_t site_of(struct cs_rebuild *s, uint32_t return_address) {
    uint64_t at = cs_mix(return_address) & s->slot_mask;
    for (const struct cs_site_slot *slot = &s->site_slots[at]; slot->site != 0; slot = &s->site_slots[at]) {
        if (slot->return_address == return_address) {
            if (s->now < slot->until) {
                return slot->chosen - 1;
            }
            break;
        }
        at = (at + 1) & s->slot_mask;
    }
    return cs_sites_resolve(s, return_address);
}

static inline void entry(struct cs_rebuild *s, const uint32_t event[4]) {
    advance(s, event[0]);
    uint32_t sp = event[1] & ~CS_EVENT_KIND_MASK;
    if (s->events == 1) {
        cs_current(s)->near = sp;
    }
    uint32_t site = site_of(s, event[3]);
    if (site == CS_NO_NODE) {
        cs_fail(s, CS_REBUILD_NO_MEMORY);
        return;
    }
    cs_frames_entry(s, sp, event[2], site);
}

/* The call that a CALL event told of, now that no ENTRY has come in its place. */
static void settle_call(struct cs_rebuild *s) {
    s->has_call = false;
    cs_frames_entry(s, s->call_sp, s->call_function, s->call_site);
    if (s->in.calls & CS_CALLS_ONCE) {
        cs_frames_exit(s, s->call_sp); /* when it ended is not known, nor whether calls seen later are its own */
    }
}

/* A call site was passed. What is called has an id of its own, behind those of traced functions. */
static void call(struct cs_rebuild *s, const uint32_t event[4]) {
    advance(s, event[0]);
    uint32_t sp = event[1] & ~CS_EVENT_KIND_MASK;
    if (s->events == 1) {
        cs_current(s)->near = sp;
    }
    uint32_t target = site_of(s, event[2]), site = target == CS_NO_NODE ? target : site_of(s, event[3]);
    if (site == CS_NO_NODE) {
        cs_fail(s, CS_REBUILD_NO_MEMORY);
        return;
    }
    s->has_call = true;
    s->call_sp = sp;
    s->call_site = site;
    s->call_return = event[3];
    s->call_function = CS_LAST_FUNCTION + 1 + target;
}

/* The compiler's hook for a function that begins or ends, as a rule an inlined one. */
static void inlined(struct cs_rebuild *s, const uint8_t *bytes, bool is_entry) {
    struct cs_inline_event event;
    memcpy(&event, bytes, sizeof event);
    advance(s, event.time);
    if (event.function == 0) {
        s->unfinished++;
        return;
    }
    uint32_t target = site_of(s, event.function), function = target == CS_NO_NODE ? 0 : s->site_states[target].starts;
    uint32_t site = target == CS_NO_NODE ? target : site_of(s, event.return_address);
    if (site == CS_NO_NODE) {
        cs_fail(s, CS_REBUILD_NO_MEMORY);
    } else if (function == 0) {
        return; /* not of an image that is traced */
    } else if (is_entry) {
        cs_inline_entry(s, event.sp, function, site);
    } else {
        cs_inline_exit(s, event.sp, function);
    }
}

/* A function of an interpreter begins or ends; `how` are the bits of the record's type beside its id. */
static void script(struct cs_rebuild *s, const uint8_t *bytes, uint32_t function, uint32_t how) {
    struct cs_script_event event;
    memcpy(&event, bytes, sizeof event);
    advance(s, event.time);
    if (s->events == 1) {
        cs_current(s)->near = event.sp;
    }
    uint32_t index = function - CS_SCRIPT_FIRST;
    function = index < s->in.script_count ? s->in.script_ids[index] : function;
    if (how == 0) {
        cs_script_entry(s, event.sp, function);
    } else {
        cs_script_exit(s, event.sp, function, how == CS_SCRIPT_UNWOUND ? CS_ENDED_UNWOUND : CS_ENDED_RETURN);
    }
}

/* An EXTENDED record of `units` times 8 bytes at `at`, `bytes` of the chunk. */
static void extended(struct cs_rebuild *s, uint32_t type, uint32_t units, uint64_t at, const uint8_t *bytes) {
    if (type == CS_EXTENDED_INLINE_ENTRY || type == CS_EXTENDED_INLINE_EXIT) {
        if (units * 8 >= 8 + sizeof(struct cs_inline_event)) {
            inlined(s, bytes + 8, type == CS_EXTENDED_INLINE_ENTRY);
        }
        return;
    }
    if (type == CS_EXTENDED_SCRIPT_SWITCH && units * 8 >= 8 + sizeof(struct cs_script_switch)) {
        struct cs_script_switch event;
        memcpy(&event, bytes + 8, sizeof event);
        advance(s, event.time);
        cs_lanes_switch(s, event.sp, event.origin, event.target);
        return;
    }
    uint32_t function = type & CS_LAST_FUNCTION;
    if (function >= CS_SCRIPT_FIRST) {
        if (units * 8 >= 8 + sizeof(struct cs_script_event)) {
            script(s, bytes + 8, function, type & ~CS_LAST_FUNCTION);
        }
        return;
    }
    struct cs_captured found = {.offset = at + 8, .bytes = (units - 1) * 8, .kind = type};
    if (type == CS_EXTENDED_RESULT) {
        s->result = found;
    } else if (type == CS_EXTENDED_ARGUMENTS && s->in.emit && s->entered != 0 && s->entered == s->calls) {
        found.call = s->calls - 1;
        cs_append_captured(s, found);
    }
}

static inline uint64_t other(struct cs_rebuild *s, const uint32_t event[2], const uint8_t *event_bytes, uint64_t at,
                             uint64_t left) {
    uint32_t argument = event[1] >> 3, sp = event[1] & ~CS_EVENT_KIND_MASK;
    switch (event[1] & CS_EVENT_KIND_MASK) {
    case CS_EVENT_TAIL:
        advance(s, event[0]);
        cs_frames_tail(s, sp);
        return 8;
    case CS_EVENT_LANDING:
        advance(s, event[0]);
        cs_frames_landing(s, sp);
        return 8;
    case CS_EVENT_CONTROL:
        if (argument == CS_CONTROL_EPOCH) {
            set_epoch(s, event[0]);
        } else if (argument != CS_CONTROL_SKIP) {
            s->unknown++;
        }
        return 8;
    case CS_EVENT_EXTENDED:
        if (argument == 0 || argument > left / 8) {
            s->unknown++;
            return left;
        }
        extended(s, event[0], argument, at, event_bytes);
        return (uint64_t)argument * 8;
    default:
        s->unknown += event[1] != 0; /* a time without a kind: its writer was killed or jumped out of there */
        return 8;
    }
}

/* Whether an event ends the wait of a CALL before it. An ENTRY of what was called does not: it takes the CALL's place.
 */
static bool waits_no_more(struct cs_rebuild *s, const uint32_t event[4]) {
    switch (event[1] & CS_EVENT_KIND_MASK) {
    case CS_EVENT_ENTRY:
        s->has_call = (event[1] & ~CS_EVENT_KIND_MASK) != s->call_sp || event[3] != s->call_return;
        return s->has_call;
    case CS_EVENT_CALL:
    case CS_EVENT_EXIT:
    case CS_EVENT_TAIL:
    case CS_EVENT_LANDING:
        return true;
    case CS_EVENT_EXTENDED:
        return event[0] == CS_EXTENDED_INLINE_ENTRY || event[0] == CS_EXTENDED_INLINE_EXIT ||
               event[0] == CS_EXTENDED_SCRIPT_SWITCH || (event[0] & CS_LAST_FUNCTION) >= CS_SCRIPT_FIRST;
    default:
        return false;
    }
}

CS_EXPORT int cs_rebuild_feed(struct cs_rebuild *s, const uint8_t *bytes, uint64_t length, uint64_t tsc,
                              uint64_t *offset, struct cs_call_rows *rows) {
    if ((s->in.emit && rows == NULL) || *offset > length) {
        return CS_REBUILD_BAD_ARGUMENT;
    }
    if (*offset == 0) {
        set_epoch(s, tsc >> 32);
    }
    if (s->in.emit) {
        uint64_t begun = s->calls - s->block;
        if (rows->count > rows->capacity || (begun != 0 && rows->capacity - rows->count < CS_BLOCK_CALLS)) {
            return CS_REBUILD_BAD_ARGUMENT;
        }
        s->rows = *rows;
    }
    uint64_t at = *offset;
    while (length - at >= 8 && s->status == CS_REBUILD_OK) {
        if (s->in.emit && s->calls == s->block && s->rows.capacity - s->rows.count < CS_BLOCK_CALLS) {
            *offset = at;
            rows->count = s->rows.count;
            return CS_REBUILD_ROWS_FULL;
        }
        uint32_t event[4];
        memcpy(event, bytes + at, 8);
        uint32_t kind = event[1] & CS_EVENT_KIND_MASK;
        if (kind == CS_EVENT_ENTRY || kind == CS_EVENT_CALL) {
            if (length - at < 16) {
                s->unknown++;
                at = length;
                break;
            }
            memcpy(event + 2, bytes + at + 8, 8);
        }
        if (s->has_call && waits_no_more(s, event)) {
            settle_call(s);
            continue; /* its row may have been the block's last */
        }
        if (s->off < s->in.off_count) {
            uint64_t size = dropped(s, event, bytes + at, length - at);
            at += size;
            if (size != 0) {
                continue;
            }
        }
        if (kind == CS_EVENT_ENTRY) {
            at += 16;
            s->entered = 0;
            if (event[2] == 0) {
                s->unfinished++;
            } else if (event[2] > CS_LAST_FUNCTION) {
                s->unknown++;
            } else {
                entry(s, event);
                s->entered = s->calls;
            }
        } else if (kind == CS_EVENT_CALL) {
            at += 16;
            if ((event[2] | event[3]) == 0) {
                s->unfinished++;
            } else {
                call(s, event);
            }
        } else if (kind == CS_EVENT_EXIT) {
            at += 8;
            advance(s, event[0]);
            uint64_t ended = cs_frames_exit(s, event[1] & ~CS_EVENT_KIND_MASK);
            if (s->result.kind != 0) {
                if (s->in.emit && ended != CS_NO_CALL) {
                    s->result.call = ended;
                    cs_append_captured(s, s->result);
                }
                s->result.kind = 0;
            }
        } else {
            at += other(s, event, bytes + at, at, length - at);
        }
    }
    *offset = at;
    s->latest = s->now;
    if (s->in.emit) {
        rows->count = s->rows.count;
    }
    return s->status;
}

CS_EXPORT uint64_t cs_rebuild_captured(struct cs_rebuild *s, const struct cs_captured **out) {
    uint64_t count = s->captured_count;
    *out = s->captured;
    s->captured_count = 0;
    return count;
}

CS_EXPORT int cs_rebuild_finish(struct cs_rebuild *s, struct cs_call_rows *rows) {
    if (s->in.emit) {
        if (rows == NULL) {
            return CS_REBUILD_BAD_ARGUMENT;
        }
        s->rows = *rows;
    }
    if (s->has_call) {
        if (s->in.emit && s->calls == s->block && s->rows.capacity - s->rows.count < CS_BLOCK_CALLS) {
            return CS_REBUILD_ROWS_FULL;
        }
        settle_call(s);
    }
    if (!cs_off_covers(s, s->in.end_tsc) && s->has_time && !s->in.no_clock) {
        uint64_t end = s->in.end_tsc > s->now && s->in.end_tsc - s->now <= s->in.tick_limit ? s->in.end_tsc : s->now;
        s->events--;
        s->epoch = end >> 32;
        advance(s, (uint32_t)end);
    }
    for (uint32_t i = 0; i < s->lane_count; i++) {
        cs_frames_clear(s, s->lanes[i], CS_ENDED_RUNNING);
    }
    if (s->in.emit) {
        s->rows.count += s->calls - s->block;
        s->block = s->calls;
        rows->count = s->rows.count;
    }
    return s->status;
}

CS_EXPORT int cs_rebuild_result(struct cs_rebuild *s, struct cs_rebuild_result *out) {
    *out = (struct cs_rebuild_result){
        .calls = s->calls,
        .events = s->events,
        .first_tsc = s->earliest,
        .last_tsc = s->latest,
        .unmatched = s->unmatched,
        .unfinished = s->unfinished,
        .unknown = s->unknown,
        .too_deep = s->too_deep,
        .merged_paths = s->paths.merged,
        .lanes = s->lanes_made + 1,
        .left = s->left,
        .nodes = s->paths.nodes,
        .sites = s->sites,
        .late = s->late,
        .buckets = s->buckets.slots,
        .out = s->out.items,
        .assumed = s->assumed.items,
        .resumed = s->resumed.items,
        .node_count = s->paths.count,
        .site_count = s->site_count,
        .late_count = s->late_count,
        .bucket_count = cs_buckets_pack(&s->buckets),
        .out_count = s->out.count,
        .assumed_count = s->assumed.count,
        .resumed_count = s->resumed.count,
    };
    return s->status;
}

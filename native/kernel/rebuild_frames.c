/* Open frames: entering, leaving, and what becomes of those whose end no event tells. */
#include <stdlib.h>

#include "rebuild_state.h"

/* Learn something about a function, once. */
static void note(struct cs_rebuild *s, uint32_t function, uint8_t fact, struct cs_list32 *list) {
    if (function < s->in.function_limit && !(s->facts[function] & fact)) {
        s->facts[function] |= fact;
        if (!cs_append32(list, function)) {
            cs_fail(s, CS_REBUILD_NO_MEMORY);
        }
    }
}

static void close_call(struct cs_rebuild *s, const struct cs_frame *frame, unsigned ended_by, uint64_t end) {
    int64_t start_ns = cs_ns(s, (int64_t)(frame->start - s->in.origin_tsc));
    int64_t duration = cs_ns(s, (int64_t)(end - s->in.origin_tsc)) - start_ns;
    int64_t self = cs_ns(s, frame->self);
    self = self < duration ? self : duration;
    int64_t descendants = (int64_t)(s->calls - 1 - frame->call);
    if (s->in.emit) {
        if (frame->call >= s->block) {
            uint64_t row = s->rows.count + (frame->call - s->block);
            s->rows.duration_ns[row] = duration;
            s->rows.self_ns[row] = self;
            s->rows.descendants[row] = descendants;
            s->rows.ended_by[row] = (uint8_t)ended_by;
        }
        return;
    }
    cs_node_count(&s->paths.nodes[frame->node], duration, self, frame->marks & CS_FRAME_INNER);
    if (cs_buckets_count(&s->buckets, frame->function, duration) != CS_REBUILD_OK) {
        cs_fail(s, CS_REBUILD_NO_MEMORY);
    }
    if (frame->late != 0) {
        s->late[frame->late - 1] = (struct cs_late){duration, self, descendants, ended_by};
    }
}

/* A frame whose TAIL mark was seen ended then, whatever is known now. */
void cs_frames_pop(struct cs_rebuild *s, struct cs_lane *lane, unsigned ended_by) {
    struct cs_frame *frame = &lane->frames[--lane->count];
    uint64_t end = s->now;
    if (frame->marks & CS_FRAME_MARKED) {
        bool is_end = ended_by != CS_ENDED_RUNNING && ended_by != CS_ENDED_OFF;
        if (!(frame->marks & CS_FRAME_LINKED) && is_end && !s->in.emit) {
            note(s, frame->function, 1, &s->out);
        }
        ended_by = CS_ENDED_TAIL_CALL;
        end = frame->tail;
    } else if (ended_by == CS_ENDED_UNWOUND && !(frame->can & CS_FUNCTION_EXITS)) {
        ended_by = CS_ENDED_RETURN; /* by a ret that has no patch */
    }
    close_call(s, frame, ended_by, end);
    if (frame->owner < s->in.function_limit) {
        s->open[frame->owner]--;
    }
    s->open_count--;
    if (lane->count == 0) {
        lane->near = frame->sp;
        lane->is_cut = 1;
    }
}

void cs_frames_clear(struct cs_rebuild *s, struct cs_lane *lane, unsigned ended_by) {
    while (lane->count != 0) {
        cs_frames_pop(s, lane, ended_by);
    }
}

void cs_frames_pop_below(struct cs_rebuild *s, struct cs_lane *lane, uint32_t sp) {
    while (lane->count != 0) {
        uint32_t base = lane->frames[0].sp, depth = base - lane->frames[lane->count - 1].sp;
        if (!((base - sp) >> 31) && depth <= base - sp) {
            return;
        }
        cs_frames_pop(s, lane, CS_ENDED_UNWOUND);
    }
}

static void pop_at(struct cs_rebuild *s, struct cs_lane *lane, uint32_t sp, unsigned ended_by) {
    while (lane->count != 0 && lane->frames[lane->count - 1].sp == sp) {
        cs_frames_pop(s, lane, ended_by);
    }
}

static struct cs_frame *top_of(const struct cs_lane *lane) {
    return lane->count != 0 ? &lane->frames[lane->count - 1] : NULL;
}

/* The block's last call has started: note which of its calls are still open, or write what the first pass noted. */
static void end_block(struct cs_rebuild *s) {
    for (uint32_t i = 0; i < s->lane_count; i++) {
        struct cs_lane *lane = s->lanes[i];
        uint32_t first = lane->count;
        while (first > 0 && lane->frames[first - 1].call >= s->block) {
            first--;
        }
        for (; first < lane->count; first++) {
            struct cs_frame *frame = &lane->frames[first];
            uint64_t slot = s->late_count++;
            if (s->in.emit) {
                struct cs_late none = {0, 0, 0, CS_ENDED_RUNNING};
                const struct cs_late *late = slot < s->in.late_count ? &s->in.late[slot] : &none;
                uint64_t row = s->rows.count + (frame->call - s->block);
                s->rows.duration_ns[row] = late->duration_ns;
                s->rows.self_ns[row] = late->self_ns;
                s->rows.descendants[row] = late->descendants;
                s->rows.ended_by[row] = (uint8_t)late->ended_by;
                continue;
            }
            if (slot >= s->late_capacity) {
                uint64_t capacity = s->late_capacity ? s->late_capacity * 2 : 256;
                struct cs_late *values = realloc(s->late, capacity * sizeof *values);
                if (values == NULL) {
                    s->late_count--;
                    cs_fail(s, CS_REBUILD_NO_MEMORY);
                    return;
                }
                s->late = values;
                s->late_capacity = capacity;
            }
            s->late[slot] = (struct cs_late){0, 0, 0, CS_ENDED_RUNNING};
            frame->late = (uint32_t)slot + 1;
        }
    }
    if (s->in.emit) {
        s->rows.count += s->calls - s->block;
    }
    s->block = s->calls;
}

static bool grow(struct cs_lane *lane) {
    uint32_t capacity = lane->capacity ? lane->capacity * 2 : 32;
    struct cs_frame *frames = realloc(lane->frames, capacity * sizeof *frames);
    if (frames == NULL) {
        return false;
    }
    lane->frames = frames;
    lane->capacity = capacity;
    return true;
}

struct entry {
    uint32_t sp, function, owner, site;
    uint8_t can;
};

/* Whether a function is known only as the target of a recorded call: no event tells its end. */
static bool is_target(uint32_t function) {
    return function > CS_LAST_FUNCTION;
}

static int32_t target_name(const struct cs_rebuild *s, uint32_t function) {
    uint32_t site = function - CS_LAST_FUNCTION - 1;
    return s->in.target_names && site < s->in.site_count ? s->in.target_names[site] : (int32_t)function;
}

/* Open a frame below `parent`, which may lie in any lane or be null, and is not looked at after the lane has grown. */
static inline void push(struct cs_rebuild *s, struct cs_lane *lane, const struct entry *e,
                        const struct cs_frame *parent, bool is_gap, uint16_t chain) {
    uint64_t call = s->calls;
    uint64_t up = parent ? call - parent->call : 0;
    uint32_t depth = parent ? parent->depth + 1 : 0;
    bool is_inner = false;
    uint32_t node = cs_paths_child(&s->paths, parent ? parent->node : CS_NO_NODE, e->function, &is_inner);
    if (node == CS_NO_NODE || (lane->count == lane->capacity && !grow(lane))) {
        cs_fail(s, CS_REBUILD_NO_MEMORY);
        return;
    }
    if (s->in.emit) {
        uint64_t row = s->rows.count + (call - s->block);
        s->rows.up[row] = (int64_t)up;
        s->rows.function[row] = is_target(e->function) ? target_name(s, e->function) : (int32_t)e->function;
        s->rows.site[row] = e->site < s->in.site_count ? s->in.site_names[e->site] : -1;
        s->rows.start_ns[row] = cs_ns(s, (int64_t)(s->now - s->in.origin_tsc));
        s->rows.depth[row] = (int32_t)depth;
        s->rows.node[row] = node < s->in.node_count ? s->in.node_names[node] : -1;
        s->rows.gap[row] = is_gap;
    }
    struct cs_frame *frame = &lane->frames[lane->count++];
    *frame = (struct cs_frame){
        .sp = e->sp,
        .function = e->function,
        .owner = e->owner,
        .site = e->site,
        .node = node,
        .depth = depth,
        .chain = chain,
        .can = e->can,
        .marks = is_inner ? CS_FRAME_INNER : 0,
        .call = call,
        .start = s->now,
    };
    if (e->owner < s->in.function_limit) {
        s->open[e->owner]++;
    }
    s->open_count++;
    s->calls++;
    if (s->open_count > CS_OPEN_LIMIT) {
        s->too_deep++;
        cs_frames_pop(s, lane, CS_ENDED_UNWOUND);
    }
    if (s->calls - s->block == CS_BLOCK_CALLS) {
        end_block(s);
    }
}

/* Open a frame that is marked as something else than a native call of its own. */
static void push_marked(struct cs_rebuild *s, struct cs_lane *lane, const struct entry *e,
                        const struct cs_frame *parent, bool is_gap, uint16_t chain, uint8_t mark) {
    uint64_t before = s->open_count;
    push(s, lane, e, parent, is_gap, chain);
    if (s->open_count > before) {
        top_of(lane)->marks |= mark;
    }
}

void cs_frames_push_inline(struct cs_rebuild *s, struct cs_lane *lane, uint32_t sp, uint32_t function, uint32_t site,
                           bool is_gap) {
    const struct cs_frame *top = top_of(lane);
    struct entry e = {sp, function, CS_NO_NODE, site, CS_FUNCTION_EXITS | CS_FUNCTION_TAILS};
    uint16_t chain = top && top->marks & CS_FRAME_INLINE ? (uint16_t)(top->chain + 1) : 1;
    push_marked(s, lane, &e, top, is_gap, chain, CS_FRAME_INLINE);
}

static bool is_fresh(const struct cs_site_state *site, uint32_t function) {
    for (uint32_t i = 0; i < site->fresh_count && i < CS_FRESH_LIMIT; i++) {
        if (site->fresh[i] == function) {
            return true;
        }
    }
    return site->fresh_count > CS_FRESH_LIMIT;
}

/* Remember that the site called `function` itself. */
static inline void learn_callee(struct cs_site_state *site, uint32_t function) {
    if (site->fresh[0] == function || is_fresh(site, function)) {
        return;
    }
    if (site->fresh_count < CS_FRESH_LIMIT) {
        site->fresh[site->fresh_count] = function;
    }
    site->fresh_count++;
}

/* Whether `function`, entered at the stack pointer of the lane's last frame, was reached from it by a tail jump. */
static bool is_tail_callee(struct cs_rebuild *s, const struct cs_lane *lane, const struct entry *e,
                           const struct cs_site_state *site) {
    struct cs_frame *top = top_of(lane);
    bool is_marked = top->marks & CS_FRAME_MARKED;
    if (is_target(e->function)) {
        return false; /* recorded at the call */
    }
    if (is_target(top->function)) {
        return top->site == e->site;
    }
    if (top->site != e->site || (!is_marked && top->can & CS_FUNCTION_TAILS)) {
        return false;
    }
    /* A loop around one call whose callee ends in a tail jump to something untraced looks the same. */
    bool may_be_new = lane->frames[lane->count - top->chain].function == e->function || is_fresh(site, e->function);
    if (!may_be_new) {
        return true;
    }
    if (is_marked && !(top->function < s->in.function_limit && s->in.function_out[top->function])) {
        if (!s->in.emit) {
            note(s, top->function, 2, &s->assumed);
        }
        return true;
    }
    top->marks |= CS_FRAME_LINKED;
    return false;
}

/* The frame that the first call of an empty lane is made from, when the lane is entered from another. */
static const struct cs_frame *caller_of_lane(struct cs_rebuild *s, uint32_t index, const struct cs_site_state *site) {
    struct cs_lane *lane = s->lanes[index];
    bool is_current = s->order[0] == index;
    if (!is_current) {
        lane->from = cs_current(s)->count != 0 ? (int32_t)s->order[0] : -1;
    }
    while (s->resumed_at < s->in.resumed_count && s->in.resumed[s->resumed_at] < s->calls) {
        s->resumed_at++;
    }
    if (s->resumed_at < s->in.resumed_count && s->in.resumed[s->resumed_at] == s->calls) {
        lane->from = -1;
    }
    /* Its outermost calls may have begun while recording was off: then the call was made by one of them. Who was
     * interrupted by a signal is certain. */
    if (s->off != 0 && !(site && site->is_signal)) {
        return NULL;
    }
    /* After a jump out of the lane, what its caller did since is not known. */
    return lane->from < 0 || (is_current && lane->is_cut) ? NULL : top_of(s->lanes[lane->from]);
}

void cs_frames_push_script(struct cs_rebuild *s, struct cs_lane *lane, uint32_t sp, uint32_t function) {
    struct entry e = {sp, function, function, CS_NO_NODE, CS_FUNCTION_EXITS | CS_FUNCTION_TAILS};
    const struct cs_frame *parent = lane->count != 0 ? top_of(lane) : caller_of_lane(s, s->order[0], NULL);
    push_marked(s, lane, &e, parent, false, 1, CS_FRAME_SCRIPT);
}

/* An ENTRY that is not simply a call from the last frame. */
static void enter_elsewhere(struct cs_rebuild *s, const struct entry *e, struct cs_site_state *site) {
    struct cs_place place = cs_lanes_of_entry(s, e->sp, site);
    struct cs_lane *lane = s->lanes[place.lane];
    cs_frames_pop_below(s, lane, e->sp);
    struct cs_frame *top = top_of(lane);
    while (top && top->marks & CS_FRAME_INLINE && top->sp == e->sp) {
        cs_frames_pop(s, lane, CS_ENDED_UNWOUND);
        top = top_of(lane);
    }
    if (top && top->sp == e->sp) {
        if (is_tail_callee(s, lane, e, site)) {
            if (!(top->marks & CS_FRAME_MARKED)) {
                top->tail = s->now;
            }
            top->marks |= CS_FRAME_MARKED | CS_FRAME_LINKED;
            if (top->chain < CS_CHAIN_LIMIT) {
                struct cs_frame caller = *top;
                cs_lanes_enter(s, place.lane);
                push(s, lane, e, &caller, false, caller.chain + 1);
                return;
            }
        }
        pop_at(s, lane, e->sp, CS_ENDED_UNWOUND);
    }
    bool is_gap = false;
    if (place.parent >= 0) {
        uint32_t count = (uint32_t)place.parent + 1;
        while (count < lane->count && lane->frames[count].marks & (CS_FRAME_INLINE | CS_FRAME_SCRIPT)) {
            count++;
        }
        while (lane->count > count) {
            cs_frames_pop(s, lane, CS_ENDED_UNWOUND);
        }
        top = top_of(lane);
        lane->frames[place.parent].marks &= (uint8_t)~(CS_FRAME_MARKED | CS_FRAME_LINKED);
    } else if (top && top->marks & CS_FRAME_SCRIPT) {
        is_gap = false; /* called by the interpreter */
    } else if (!top || !(top->marks & CS_FRAME_INLINE) || s->site_states[top->site].function != site->function) {
        uint32_t caller_sp = e->sp + site->offset;
        if (site->kind == CS_SITE_RSP) {
            cs_frames_pop_below(s, lane, caller_sp);
            top = top_of(lane);
            uint8_t seen = CS_FUNCTION_EXITS | CS_FUNCTION_TAILS;
            if (top && top->sp == caller_sp && !(top->marks & CS_FRAME_MARKED) && (top->can & seen) == seen &&
                !site->is_part && top->owner != site->function) {
                pop_at(s, lane, caller_sp, CS_ENDED_UNWOUND);
            }
        }
        top = top_of(lane);
        bool is_inside = site->is_part && site->kind == CS_SITE_RSP && top && top->sp == caller_sp;
        is_gap = !is_inside;
    }
    const struct cs_frame *parent = top;
    if (lane->count == 0) {
        parent = caller_of_lane(s, place.lane, site);
    }
    struct cs_frame caller;
    if (parent) {
        caller = *parent;
        is_gap = is_gap && caller.owner != site->function;
    }
    cs_lanes_enter(s, place.lane);
    learn_callee(site, e->function);
    push(s, lane, e, parent ? &caller : NULL, parent && is_gap, 1);
}

/* Of several modules whose addresses have the same low half, the one that the last frame speaks for. */
static uint32_t choose_site(const struct cs_rebuild *s, uint32_t first, uint32_t sp) {
    const struct cs_lane *lane = cs_current(s);
    for (uint32_t at = first + 1; at != 0 && lane->count != 0; at = s->site_states[at - 1].also) {
        const struct cs_site_state *site = &s->site_states[at - 1];
        const struct cs_frame *top = top_of(lane);
        if (top->owner == site->function && (site->kind != CS_SITE_RSP || top->sp == sp + site->offset)) {
            return at - 1;
        }
    }
    return first;
}

/* Whether the target of a recorded call is this traced function. */
static bool is_entry_of(const struct cs_rebuild *s, uint32_t target, uint32_t function) {
    uint32_t site = target - CS_LAST_FUNCTION - 1;
    for (uint64_t i = 0; i < s->in.image_count && site < s->site_count; i++) {
        const struct cs_image_tables *image = &s->in.images[i];
        if (function >= image->id_base && function - image->id_base < image->function_count) {
            return image->functions[function - image->id_base].rva == s->sites[site].rva;
        }
    }
    return false;
}

/* A signal came between a recorded call and the entry of what it called: the call's frame is the entry's. */
static bool enter_target(struct cs_rebuild *s, const struct entry *e) {
    struct cs_frame *top = top_of(cs_current(s));
    if (!top || !is_target(top->function) || top->sp != e->sp || top->site != e->site || top->owner != top->function ||
        !is_entry_of(s, top->function, e->function)) {
        return false;
    }
    top->owner = e->owner;
    top->can = e->can;
    if (e->owner < s->in.function_limit) {
        s->open[e->owner]++;
    }
    return true;
}

void cs_frames_entry(struct cs_rebuild *s, uint32_t sp, uint32_t function, uint32_t site_index) {
    if (s->site_states[site_index].also != 0) {
        site_index = choose_site(s, site_index, sp);
    }
    struct cs_site_state *site = &s->site_states[site_index];
    struct entry e = {sp, function, function, site_index, CS_FUNCTION_EXITS | CS_FUNCTION_TAILS};
    if (function < s->in.function_limit) {
        e.owner = s->in.function_owner[function];
        e.can = s->in.function_flags[function];
    } else if (is_target(function)) {
        e.can = 0;
    }
    struct cs_lane *lane = cs_current(s);
    if (lane->count != 0) {
        const struct cs_frame *top = &lane->frames[lane->count - 1], *code = cs_lane_code(lane);
        uint32_t apart = code ? code->sp - sp : 0;
        bool is_caller = code && code->owner == site->function && !(code->marks & CS_FRAME_MARKED) &&
                         !((lane->frames[0].sp - sp) >> 31) && apart != 0 && (int32_t)(top->sp - sp) > 0;
        if (is_caller && site->kind == CS_SITE_RSP && apart == site->offset) {
            learn_callee(site, function);
            push(s, lane, &e, top, false, 1);
            return;
        }
        if (is_caller && site->kind == CS_SITE_RBP && apart <= CS_NEAR) {
            learn_callee(site, function);
            push(s, lane, &e, top, false, 1);
            return;
        }
    }
    if (!enter_target(s, &e)) {
        enter_elsewhere(s, &e, site);
    }
}

/* Frames below sp are gone, if the current lane is where sp is. */
static void drop_below(struct cs_rebuild *s, uint32_t sp) {
    struct cs_lane *lane = cs_current(s);
    if (lane->count != 0 && (cs_lane_distance(lane, sp) <= CS_NEAR || cs_lane_covers(lane, sp))) {
        cs_frames_pop_below(s, lane, sp);
        cs_lanes_leave_empty(s);
    }
}

/* The frame at sp, the last of its lane now, which is the current one; null when there is none. */
static struct cs_frame *go_to_frame(struct cs_rebuild *s, uint32_t sp) {
    struct cs_lane *lane = cs_current(s);
    if (lane->count != 0 && lane->frames[lane->count - 1].sp == sp) {
        return &lane->frames[lane->count - 1];
    }
    struct cs_place place = cs_lanes_of_frame(s, sp);
    if (place.parent < 0) {
        s->unmatched += !s->in.calls; /* else it may be where a call returned whose own EXIT was seen */
        drop_below(s, sp);
        return NULL;
    }
    lane = s->lanes[place.lane];
    while (lane->count > (uint32_t)place.parent + 1) {
        const struct cs_frame *code = cs_lane_code(lane);
        bool is_own = code == &lane->frames[place.parent]; /* code inlined there that has no hook at this end */
        cs_frames_pop(s, lane, is_own ? CS_ENDED_RETURN : CS_ENDED_UNWOUND);
    }
    cs_lanes_enter(s, place.lane);
    return top_of(lane);
}

uint64_t cs_frames_exit(struct cs_rebuild *s, uint32_t sp) {
    const struct cs_frame *frame = go_to_frame(s, sp);
    uint64_t call = frame ? frame->call : CS_NO_CALL;
    if (frame) {
        struct cs_lane *lane = cs_current(s);
        pop_at(s, lane, sp, CS_ENDED_RETURN);
        if (lane->count == 0) {
            lane->is_cut = 0;
            cs_lanes_leave_empty(s);
        }
    }
    return call;
}

void cs_frames_tail(struct cs_rebuild *s, uint32_t sp) {
    struct cs_frame *frame = go_to_frame(s, sp);
    if (frame && !(frame->marks & CS_FRAME_MARKED)) {
        frame->marks |= CS_FRAME_MARKED;
        frame->tail = s->now;
    }
}

void cs_frames_landing(struct cs_rebuild *s, uint32_t sp) {
    uint32_t index = cs_lanes_near(s, sp);
    if (index != CS_NO_NODE && s->lanes[index]->count != 0) {
        struct cs_frame *top = top_of(s->lanes[index]);
        if (is_target(top->function)) {
            top->can |= CS_FUNCTION_EXITS; /* it did not return, or that would have been seen */
        }
        cs_frames_pop_below(s, s->lanes[index], sp);
        if (s->lanes[index]->count != 0) {
            cs_lanes_enter(s, index);
        }
    }
}

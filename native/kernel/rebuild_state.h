/* The state of one thread's rebuild, shared by rebuild*.c. */
#ifndef CALLSCOPE_KERNEL_REBUILD_STATE_H
#define CALLSCOPE_KERNEL_REBUILD_STATE_H

#include "rebuild.h"
#include "rebuild_paths.h"

enum {
    CS_NEAR = 16 << 10,           /* stack pointers this close may belong to one stack without other evidence */
    CS_REACH = 16 << 20,          /* no frame is larger */
    CS_CHAIN_LIMIT = 1000,        /* tail calls in a row; the next one begins anew below the chain's caller */
    CS_LANE_LIMIT = 1024,         /* stacks of one thread followed at a time */
    CS_OPEN_LIMIT = 1 << 22,      /* open frames of one thread */
    CS_SITE_LIMIT = 1 << 22,      /* call sites of one thread */
    CS_SEARCH_LIMIT = 1024,       /* frames or modules looked through for one event */
    CS_HOP_LIMIT = 64,            /* chains of tail calls looked through for who is running */
    CS_ALIAS_LIMIT = 4,           /* modules at one low half of an address at one time */
    CS_FRESH_LIMIT = 3,           /* callees of a site that are told apart */
    CS_FUNCTION_SIGNAL = 1 << 16, /* function.flags of untraced images: the return trampoline of signal handlers */
};

/* How the caller's stack pointer at its entry follows from a call site. */
enum cs_site_kind {
    CS_SITE_UNKNOWN,
    CS_SITE_RSP, /* it is the callee's + offset */
    CS_SITE_RBP, /* it cannot be said, but the caller's function is known */
};

struct cs_site_state {
    uint32_t function; /* owner-mapped id of the function around the site, or 0 */
    uint32_t offset;   /* CS_SITE_RSP */
    uint32_t starts;   /* id of the function that begins at this very address, or 0 */
    uint8_t kind;
    uint8_t is_part; /* the function is a part of an unknown one */
    uint8_t is_signal;
    uint8_t fresh_count;            /* of fresh; CS_FRESH_LIMIT + 1: there are more */
    uint32_t fresh[CS_FRESH_LIMIT]; /* functions called from here, other than by tail calls */
    uint32_t same;                  /* index + 1 of another site with the same low half of its address */
    uint32_t also;                  /* index + 1 of another site that is possible at the same time */
};

struct cs_site_slot {
    uint32_t return_address;
    uint32_t site;   /* index + 1 of the first site with this address; 0: empty */
    uint32_t chosen; /* index + 1 of the site that it is now */
    uint32_t reserved;
    uint64_t until; /* the answer holds before this time */
};

enum {
    CS_FRAME_MARKED = 1,  /* its TAIL mark was seen: it ended then, and waits for the chain to return */
    CS_FRAME_LINKED = 2,  /* another frame is its tail callee */
    CS_FRAME_INNER = 4,   /* it lies inside another call of its node */
    CS_FRAME_INLINE = 8,  /* an inlined call: code of the frame `chain` places before it */
    CS_FRAME_HOOKED = 16, /* the compiler's hook told of its entry too */
    CS_FRAME_SCRIPT = 32, /* of an interpreter: its stack pointer stands for none */
};

struct cs_frame {
    uint32_t sp;
    uint32_t function, owner;
    uint32_t site, node, depth;
    uint32_t late;        /* slot of its late value + 1 */
    uint16_t chain;       /* its place among the frames of one stack pointer, from 1 */
    uint8_t can;          /* FUNCTION_* of its function */
    uint8_t marks;        /* CS_FRAME_* */
    uint64_t call;        /* number in the thread */
    uint64_t start, tail; /* ticks */
    int64_t self;         /* ticks */
};
_Static_assert(sizeof(struct cs_frame) == 64, "one cache line");

/* One stack: frames from the outermost. Their stack pointers fall, and lie within 2^31 below the first. */
struct cs_lane {
    struct cs_frame *frames;
    uint32_t count, capacity;
    uint32_t near;  /* while empty: where it was */
    int32_t from;   /* the lane this one was entered from, and will go back to, or -1 */
    uint8_t is_cut; /* it was emptied by inference */
    uint32_t stack; /* which of an interpreter's stacks it is; 0: none, or not known */
};

struct cs_list32 {
    uint32_t *items;
    uint64_t count, capacity;
};

struct cs_list64 {
    uint64_t *items;
    uint64_t count, capacity;
};

struct cs_rebuild {
    struct cs_rebuild_input in;
    /* the clock */
    uint64_t epoch, now, last, earliest, latest;
    bool has_time;
    /* stacks: order[0] is the current one */
    struct cs_lane *lanes[CS_LANE_LIMIT];
    uint16_t order[CS_LANE_LIMIT];
    uint32_t lane_count;
    uint64_t open_count;
    uint32_t *open; /* open frames by owner id */
    /* call sites */
    struct cs_site *sites;
    struct cs_site_state *site_states;
    uint64_t site_count, site_capacity;
    struct cs_site_slot *site_slots;
    uint64_t slot_count, slot_mask;
    uint32_t site_overflow; /* index + 1 of the site that stands for all beyond CS_SITE_LIMIT */
    /* first pass */
    struct cs_paths paths;
    struct cs_bucket_table buckets;
    struct cs_late *late;
    uint64_t late_count, late_capacity;
    uint8_t *facts; /* by function id: 1 in `out`, 2 in `assumed` */
    struct cs_list32 out, assumed;
    struct cs_list64 resumed;
    /* calls and rows */
    uint64_t calls, block; /* the number of the next call; of the first of this block */
    uint64_t resumed_at;   /* in in.resumed: the first not below `calls` */
    struct cs_call_rows rows;
    /* what was captured; `result`: it belongs to the EXIT that follows */
    struct cs_captured *captured;
    uint64_t captured_count, captured_capacity;
    uint64_t entered; /* calls, when an ENTRY was the last event */
    struct cs_captured result;
    uint64_t off;  /* in in.offs: the first that is not over */
    bool off_seen; /* its beginning is passed: no call is open */
    /* a CALL event that waits for the next one: an ENTRY of what it called tells more */
    bool has_call;
    uint32_t call_sp, call_site, call_return, call_function;
    uint64_t events, unmatched, unfinished, unknown, too_deep, lanes_made, left;
    int status; /* the first failure */
};

/* rebuild_sites.c */
int cs_sites_start(struct cs_rebuild *s);
uint32_t cs_sites_resolve(struct cs_rebuild *s,
                          uint32_t return_address); /* index; CS_NO_NODE when there is no memory */

/* rebuild_lanes.c */
struct cs_place {
    uint32_t lane;
    int32_t parent; /* index of the caller's frame, or -1 */
};
struct cs_place cs_lanes_of_entry(struct cs_rebuild *s, uint32_t sp, const struct cs_site_state *site);
struct cs_place cs_lanes_of_frame(struct cs_rebuild *s, uint32_t sp);
uint32_t cs_lanes_near(const struct cs_rebuild *s, uint32_t sp);
bool cs_lane_covers(const struct cs_lane *lane, uint32_t sp);
uint32_t cs_lane_distance(const struct cs_lane *lane, uint32_t sp);
void cs_lanes_enter(struct cs_rebuild *s, uint32_t lane);
/* An interpreter goes on with another of its stacks. */
void cs_lanes_switch(struct cs_rebuild *s, uint32_t sp, uint32_t origin, uint32_t target);
void cs_lanes_leave_empty(struct cs_rebuild *s);
int64_t cs_lane_find(const struct cs_lane *lane, uint32_t sp);

/* rebuild_frames.c */
void cs_frames_entry(struct cs_rebuild *s, uint32_t sp, uint32_t function, uint32_t site);
/* The number of the call that ended, or CS_NO_CALL. */
uint64_t cs_frames_exit(struct cs_rebuild *s, uint32_t sp);
#define CS_NO_CALL UINT64_MAX
void cs_frames_tail(struct cs_rebuild *s, uint32_t sp);
void cs_frames_landing(struct cs_rebuild *s, uint32_t sp);
void cs_frames_clear(struct cs_rebuild *s, struct cs_lane *lane, unsigned ended_by);
/* End the lane's last frame. */
void cs_frames_pop(struct cs_rebuild *s, struct cs_lane *lane, unsigned ended_by);
/* End the frames that begin below sp. */
void cs_frames_pop_below(struct cs_rebuild *s, struct cs_lane *lane, uint32_t sp);
/* Open a frame for an inlined call below the lane's last one. */
void cs_frames_push_inline(struct cs_rebuild *s, struct cs_lane *lane, uint32_t sp, uint32_t function, uint32_t site,
                           bool is_gap);
/* Open a frame for an interpreted call below the lane's last one. */
void cs_frames_push_script(struct cs_rebuild *s, struct cs_lane *lane, uint32_t sp, uint32_t function);

/* rebuild_off.c */
/* Whether an event of that time is to be dropped: recording was off, or about to go on. Ends the open calls first. */
bool cs_off_covers(struct cs_rebuild *s, uint64_t time);
/* The time of an event is known to be at least `time`: the frame that was running pays for what has passed. */
void cs_pass_time(struct cs_rebuild *s, uint64_t time);

/* rebuild_lists.c; false when there is no memory */
bool cs_append32(struct cs_list32 *list, uint32_t value);
bool cs_append64(struct cs_list64 *list, uint64_t value);
bool cs_append_captured(struct cs_rebuild *s, struct cs_captured value);

/* rebuild_inline.c */
/* The compiler's hook told that `function` begins at `sp` as a part of the code around the call site. */
void cs_inline_entry(struct cs_rebuild *s, uint32_t sp, uint32_t function, uint32_t site);
void cs_inline_exit(struct cs_rebuild *s, uint32_t sp, uint32_t function);

/* rebuild_script.c */
/* A recorder in an interpreter told that `function` begins, or ends, with its own stack pointer. */
void cs_script_entry(struct cs_rebuild *s, uint32_t sp, uint32_t function);
void cs_script_exit(struct cs_rebuild *s, uint32_t sp, uint32_t function, unsigned ended_by);

/* The frame whose code a lane's last frame is: itself, or what an inlined call is part of. Null: not traced. */
static inline struct cs_frame *cs_lane_code(const struct cs_lane *lane) {
    struct cs_frame *top = lane->count != 0 ? &lane->frames[lane->count - 1] : NULL;
    if (top == NULL || !(top->marks & CS_FRAME_INLINE)) {
        return top;
    }
    return top->chain < lane->count ? top - top->chain : NULL;
}

static inline void cs_fail(struct cs_rebuild *s, int status) {
    if (s->status == CS_REBUILD_OK) {
        s->status = status;
    }
}

static inline struct cs_lane *cs_current(const struct cs_rebuild *s) {
    return s->lanes[s->order[0]];
}

static inline int64_t cs_ns(const struct cs_rebuild *s, int64_t ticks) {
    return (int64_t)((__int128)ticks * s->in.tick_scale >> CS_TICK_SHIFT);
}

#endif

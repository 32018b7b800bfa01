/* Events -> calls: what Python hands in and gets back (src/callscope/calls/kernel.py mirrors these structures).
 *
 * One `struct cs_rebuild` rebuilds the calls of one thread. It is fed the thread's chunks in order and keeps the frames
 * that are open; docs/calls-table.md says how parents, endings, gaps and stack regions are decided, and
 * tests/unit/test_rebuild.py has each rule as an example.
 *
 * A call's row is written when it starts, its end is known later. So a thread is gone through twice. The first pass
 * counts, builds the table of paths, and notes the late values: the ends of calls that were still open when their block
 * of CS_BLOCK_CALLS calls was complete. The second pass writes rows block by block and fills the late values in. Memory
 * grows with depth, distinct paths and call sites, never with the number of calls.
 *
 * Nothing here trusts its input: any bytes may be fed. All times are time-stamp counter ticks unless a name ends in
 * `_ns`. */
#ifndef CALLSCOPE_KERNEL_REBUILD_H
#define CALLSCOPE_KERNEL_REBUILD_H

#include <stdint.h>

#include "callscope/records.h"
#include "kernel.h"

#define CS_BLOCK_CALLS 65536u

/* What the functions return. */
enum cs_rebuild_status {
    CS_REBUILD_OK = 0,
    CS_REBUILD_NO_MEMORY = 1,
    CS_REBUILD_BAD_ARGUMENT = 2,
    CS_REBUILD_ROWS_FULL = 3, /* take the rows away, then go on from the offset */
};

/* cs_call_rows.ended_by */
enum cs_ended_by {
    CS_ENDED_RETURN = 0,
    CS_ENDED_TAIL_CALL = 1,
    CS_ENDED_UNWOUND = 2,
    CS_ENDED_RUNNING = 3,
    CS_ENDED_OFF = 4, /* open when recording went off */
};

/* The functions and call frame information of one image. Both arrays are sorted by rva; `owner` is an index below the
 * count. */
struct cs_image_tables {
    const struct cs_function *functions;
    const struct cs_cfa_row *rows;
    uint32_t function_count, row_count;
    uint32_t id_base; /* function id of functions[0] */
    uint32_t reserved;
};

/* A stretch of time in which an image lay at an address. Sorted by `low`, the low half of its first address; one that
 * crosses a 4 GiB boundary stands there twice. */
struct cs_module_span {
    uint32_t low, bytes;
    uint32_t rva;    /* of the address `low` */
    uint32_t module; /* what cs_site.module answers */
    int32_t image;   /* index in cs_rebuild_input.images, or -1 */
    uint32_t reach;  /* the greatest low + bytes - 1 of this and all spans before it */
    uint64_t load_tsc, unload_tsc;
};

/* A stretch of time in which recording was off, or went off or on. */
struct cs_off_span {
    uint64_t off_tsc, on_tsc;
};

/* What a late value holds: the end of a call. */
struct cs_late {
    int64_t duration_ns, self_ns, descendants;
    uint64_t ended_by;
};

/* The columns of up to `capacity` rows; `count` are filled. docs/calls-table.md has the meanings. */
struct cs_call_rows {
    int64_t *up, *start_ns, *duration_ns, *self_ns, *descendants;
    int32_t *function, *site, *depth, *node;
    uint8_t *ended_by, *gap;
    uint64_t capacity, count;
};

/* Everything cs_rebuild_open needs. The arrays must live until cs_rebuild_close. */
struct cs_rebuild_input {
    const uint8_t *function_flags;  /* FUNCTION_* of every function id below function_limit */
    const uint32_t *function_owner; /* the id of the function it is a part of, else its own */
    const uint8_t *function_out;    /* learned: not 0 when its tail jumps can leave what is traced */
    uint64_t function_limit;
    const struct cs_image_tables *images;
    uint64_t image_count;
    const struct cs_module_span *modules; /* of the thread's process */
    uint64_t module_count;
    const uint64_t
        *resumed; /* learned: calls, by number in the thread, that began a stack which was left and resumed; sorted */
    uint64_t resumed_count;
    const struct cs_late *late; /* second pass: the first one's late values, and what its sites and nodes are called */
    uint64_t late_count;
    const int32_t *site_names, *node_names;
    const int32_t *target_names; /* by site: the function id of that address as a call's target */
    uint64_t site_count, node_count;
    const struct cs_off_span *offs; /* of the thread's process, in order */
    uint64_t off_count;
    const uint32_t *script_ids; /* by id - SCRIPT_FIRST: the id that stands for this function in the whole trace */
    uint64_t script_count;
    uint64_t origin_tsc; /* where start_ns is 0 */
    uint64_t tick_limit; /* times further from the origin than this are damaged */
    uint64_t tick_scale; /* nanoseconds a tick, times 2^CS_TICK_SHIFT */
    uint64_t end_tsc;    /* when the thread ended, or the latest time known */
    uint32_t no_clock;
    uint32_t learning; /* first pass only: stacks that were left stay open, to see whether they are resumed */
    uint32_t emit;     /* 0: first pass, 1: second pass */
    uint32_t calls;    /* CS_CALLS_* */
};

#define CS_TICK_SHIFT 40

/* cs_rebuild_input.calls */
enum { CS_CALLS_RECORDED = 1, CS_CALLS_ONCE = 2 };

/* A call site: a return address in one module; or the target of a recorded call, which is the function with the id
 * LAST_FUNCTION + 1 + the site's index. */
struct cs_site {
    uint32_t return_address;
    int32_t module;    /* cs_module_span.module, or -1 */
    uint32_t rva;      /* of the return address in its module */
    uint32_t function; /* id of the containing function, owner-mapped, or 0 */
};

/* A path of functions from the root. Parents stand before their children. */
struct cs_node {
    uint32_t parent; /* index, or CS_NO_NODE */
    uint32_t function;
    uint32_t depth;
    uint32_t reserved;
    uint64_t calls;
    int64_t total_ns; /* of calls not inside another call of the same node */
    int64_t self_ns, min_ns, max_ns;
};

#define CS_NO_NODE 0xffffffffu

/* One bar of a function's histogram of durations. */
struct cs_bucket {
    uint32_t function, bucket;
    uint64_t calls;
};

/* What a pass found; the pointers hold until cs_rebuild_close. */
struct cs_rebuild_result {
    uint64_t calls, events;
    uint64_t first_tsc, last_tsc; /* of events */
    uint64_t unmatched;           /* EXIT and TAIL events of functions that were never seen entered */
    uint64_t unfinished;          /* ENTRY events that their writer did not finish */
    uint64_t unknown;             /* words that are no event, and records that do not fit their chunk */
    uint64_t too_deep;            /* calls below the greatest depth that is followed */
    uint64_t merged_paths;        /* calls whose path was merged with another because there were too many */
    uint64_t lanes;
    uint64_t left; /* lanes that were left with open frames for the one they were entered from */
    const struct cs_node *nodes;
    const struct cs_site *sites;
    const struct cs_late *late;
    const struct cs_bucket *buckets; /* sorted by nothing */
    const uint32_t *out;             /* learned: functions with a tail jump to something untraced */
    const uint32_t *assumed; /* functions whose tail jump was taken for one to the traced function entered next */
    const uint64_t *resumed; /* learned: see cs_rebuild_input.resumed; not sorted */
    uint64_t node_count, site_count, late_count, bucket_count, out_count, assumed_count, resumed_count;
};

/* What was captured of a call: `bytes` bytes at `offset` of what was fed last. */
struct cs_captured {
    uint64_t call; /* number in the thread */
    uint64_t offset;
    uint32_t bytes;
    uint32_t kind; /* EXTENDED_ARGUMENTS or EXTENDED_RESULT */
};

struct cs_rebuild;

/* Begin a pass over one thread. 0, or CS_REBUILD_NO_MEMORY or CS_REBUILD_BAD_ARGUMENT. */
int cs_rebuild_open(const struct cs_rebuild_input *input, struct cs_rebuild **out);

/* Take the events of one chunk: `bytes` is what follows its header, `tsc` what the header says. `offset` is where to go
 * on, 0 for a new chunk. CS_REBUILD_ROWS_FULL when fewer than CS_BLOCK_CALLS rows are left: call again with other rows
 * and the same chunk. On an error `offset` is where it happened. `rows` may be null in the first pass. */
int cs_rebuild_feed(struct cs_rebuild *rebuild, const uint8_t *bytes, uint64_t length, uint64_t tsc, uint64_t *offset,
                    struct cs_call_rows *rows);

/* Second pass: what the events fed since the last time had captured; valid until the next feed. */
uint64_t cs_rebuild_captured(struct cs_rebuild *rebuild, const struct cs_captured **out);

/* The thread has no more events: close what is open. */
int cs_rebuild_finish(struct cs_rebuild *rebuild, struct cs_call_rows *rows);

int cs_rebuild_result(struct cs_rebuild *rebuild, struct cs_rebuild_result *out);
void cs_rebuild_close(struct cs_rebuild *rebuild);

/* A table of paths that merges those of threads. */
struct cs_paths;
int cs_paths_open(struct cs_paths **out);
/* Add a thread's nodes with their counts and times; names[i] becomes the number here of nodes[i]. */
int cs_paths_merge(struct cs_paths *paths, const struct cs_node *nodes, uint64_t count, int32_t *names);
/* The merged nodes, valid until the next merge. outermost, if not null, has room for them: 1 where no ancestor has the
 * same function. */
int cs_paths_result(struct cs_paths *paths, const struct cs_node **nodes, uint64_t *count, uint8_t *outermost);
void cs_paths_close(struct cs_paths *paths);

/* Whether bytes that follow a chunk header hold anything: 1 when they are all zero. */
int cs_all_zero(const uint8_t *bytes, uint64_t length);

#endif

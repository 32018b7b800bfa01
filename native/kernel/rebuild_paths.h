/* Paths of functions from the root, and histograms of durations. */
#ifndef CALLSCOPE_KERNEL_REBUILD_PATHS_H
#define CALLSCOPE_KERNEL_REBUILD_PATHS_H

#include <stdbool.h>

#include "rebuild.h"

/* Beyond this depth, or so many nodes, a recursive call takes the node of the call of the same function around it;
 * beyond the second number of nodes a new path is counted as its last function alone. */
enum {
    CS_PATH_DEPTH = 256,
    CS_PATH_NODES = 1 << 19,
    CS_PATH_NODES_FULL = 1 << 20,
    CS_PATHS_MERGED = 1 << 22,
};

struct cs_path_slot {
    uint64_t key; /* (parent + 1) << 32 | function; 0: empty */
    uint32_t node;
    uint32_t is_alias; /* the node is not a child of `parent` */
};

struct cs_paths {
    struct cs_node *nodes;
    uint64_t count, capacity;
    struct cs_path_slot *slots;
    uint64_t slot_count, slot_mask;
    uint32_t depth_limit;
    uint64_t node_limit, full_limit;
    uint64_t merged; /* look-ups that ended at another path's node */
};

struct cs_bucket_table {
    struct cs_bucket *slots; /* function 0: empty */
    uint64_t count, mask;
};

int cs_paths_start(struct cs_paths *paths, uint32_t depth_limit, uint64_t node_limit, uint64_t full_limit);
void cs_paths_free(struct cs_paths *paths);
/* The node for a call of `function` from `parent`; *is_alias as above. CS_NO_NODE when there is no memory. */
uint32_t cs_paths_add(struct cs_paths *paths, uint32_t parent, uint32_t function, bool *is_alias);

static inline uint64_t cs_mix(uint64_t key) {
    key *= 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio: Fibonacci hashing, Knuth volume 3, 6.4 */
    return key ^ key >> 32;
}

static inline uint32_t cs_paths_child(struct cs_paths *paths, uint32_t parent, uint32_t function, bool *is_alias) {
    uint64_t key = (uint64_t)(uint32_t)(parent + 1) << 32 | function;
    for (uint64_t at = cs_mix(key) & paths->slot_mask;; at = (at + 1) & paths->slot_mask) {
        const struct cs_path_slot *slot = &paths->slots[at];
        if (slot->key == key) {
            *is_alias = slot->is_alias != 0;
            paths->merged += slot->is_alias;
            return slot->node;
        }
        if (slot->key == 0) {
            return cs_paths_add(paths, parent, function, is_alias);
        }
    }
}

static inline void cs_node_count(struct cs_node *node, int64_t duration_ns, int64_t self_ns, bool is_inner) {
    node->calls++;
    node->total_ns += is_inner ? 0 : duration_ns;
    node->self_ns += self_ns;
    node->min_ns = duration_ns < node->min_ns ? duration_ns : node->min_ns;
    node->max_ns = duration_ns > node->max_ns ? duration_ns : node->max_ns;
}

int cs_buckets_start(struct cs_bucket_table *table);
int cs_buckets_grow(struct cs_bucket_table *table);
/* Move the used slots to the front; the table cannot be added to any more. Their number. */
uint64_t cs_buckets_pack(struct cs_bucket_table *table);

/* Bars: below 16 one a nanosecond, above 16 for every power of two. Bar b >= 16 begins at (16 + b % 16) << (b / 16 -
 * 1). */
static inline uint32_t cs_bucket_of(uint64_t nanoseconds) {
    if (nanoseconds < 16) {
        return (uint32_t)nanoseconds;
    }
    uint32_t power = 63 - (uint32_t)__builtin_clzll(nanoseconds);
    return (power - 3) * 16 + (uint32_t)(nanoseconds >> (power - 4) & 15);
}

static inline int cs_buckets_count(struct cs_bucket_table *table, uint32_t function, int64_t duration_ns) {
    uint32_t bucket = cs_bucket_of((uint64_t)duration_ns);
    uint64_t at = cs_mix((uint64_t)function << 10 | bucket) & table->mask;
    while (table->slots[at].function != 0) {
        if (table->slots[at].function == function && table->slots[at].bucket == bucket) {
            table->slots[at].calls++;
            return CS_REBUILD_OK;
        }
        at = (at + 1) & table->mask;
    }
    table->slots[at] = (struct cs_bucket){function, bucket, 1};
    table->count++;
    return table->count * 2 > table->mask ? cs_buckets_grow(table) : CS_REBUILD_OK;
}

#endif

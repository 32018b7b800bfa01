/* Paths of functions from the root, and histograms of durations: hash tables with open addressing. */
#include "rebuild_paths.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_SLOTS = 1024, WALK_LIMIT = 1024, SLOT_LIMIT = 1 << 22 };

int cs_paths_start(struct cs_paths *paths, uint32_t depth_limit, uint64_t node_limit, uint64_t full_limit) {
    *paths = (struct cs_paths){.depth_limit = depth_limit, .node_limit = node_limit, .full_limit = full_limit};
    paths->capacity = FIRST_SLOTS / 2;
    paths->nodes = malloc(paths->capacity * sizeof *paths->nodes);
    paths->slots = calloc(FIRST_SLOTS, sizeof *paths->slots);
    paths->slot_mask = FIRST_SLOTS - 1;
    return paths->nodes == NULL || paths->slots == NULL ? CS_REBUILD_NO_MEMORY : CS_REBUILD_OK;
}

void cs_paths_free(struct cs_paths *paths) {
    free(paths->nodes);
    free(paths->slots);
}

static void place(struct cs_path_slot *slots, uint64_t mask, struct cs_path_slot slot) {
    uint64_t at = cs_mix(slot.key) & mask;
    while (slots[at].key != 0) {
        at = (at + 1) & mask;
    }
    slots[at] = slot;
}

static int insert(struct cs_paths *paths, struct cs_path_slot slot) {
    if (paths->slot_count * 2 > paths->slot_mask) {
        uint64_t mask = paths->slot_mask * 2 + 1;
        struct cs_path_slot *slots = calloc(mask + 1, sizeof *slots);
        if (slots == NULL) {
            return CS_REBUILD_NO_MEMORY;
        }
        for (uint64_t i = 0; i <= paths->slot_mask; i++) {
            if (paths->slots[i].key != 0) {
                place(slots, mask, paths->slots[i]);
            }
        }
        free(paths->slots);
        paths->slots = slots;
        paths->slot_mask = mask;
    }
    place(paths->slots, paths->slot_mask, slot);
    paths->slot_count++;
    return CS_REBUILD_OK;
}

/* The nearest node of `function` among `node` and its ancestors, or CS_NO_NODE. */
static uint32_t ancestor(const struct cs_paths *paths, uint32_t node, uint32_t function) {
    for (int i = 0; i < WALK_LIMIT && node != CS_NO_NODE; i++, node = paths->nodes[node].parent) {
        if (paths->nodes[node].function == function) {
            return node;
        }
    }
    return CS_NO_NODE;
}

static uint32_t append(struct cs_paths *paths, uint32_t parent, uint32_t function) {
    if (paths->count == paths->capacity) {
        struct cs_node *nodes = realloc(paths->nodes, paths->capacity * 2 * sizeof *nodes);
        if (nodes == NULL) {
            return CS_NO_NODE;
        }
        paths->nodes = nodes;
        paths->capacity *= 2;
    }
    uint32_t depth = parent == CS_NO_NODE ? 0 : paths->nodes[parent].depth + 1;
    paths->nodes[paths->count] =
        (struct cs_node){.parent = parent, .function = function, .depth = depth, .min_ns = INT64_MAX};
    return (uint32_t)paths->count++;
}

uint32_t cs_paths_add(struct cs_paths *paths, uint32_t parent, uint32_t function, bool *is_alias) {
    struct cs_path_slot slot = {(uint64_t)(uint32_t)(parent + 1) << 32 | function, CS_NO_NODE, 0};
    if (parent != CS_NO_NODE) {
        bool is_deep = paths->nodes[parent].depth + 1 >= paths->depth_limit;
        if (is_deep || paths->count >= paths->node_limit) {
            slot.node = ancestor(paths, parent, function);
        }
        if (slot.node == CS_NO_NODE && paths->count >= paths->full_limit) {
            bool ignored;
            slot.node = cs_paths_child(paths, CS_NO_NODE, function, &ignored);
            if (slot.node == CS_NO_NODE) {
                return CS_NO_NODE;
            }
        }
    }
    if (slot.node != CS_NO_NODE) {
        slot.is_alias = 1;
        paths->merged++;
        *is_alias = true;
        if (paths->slot_count >= SLOT_LIMIT + paths->full_limit) {
            return slot.node; /* found again by walking: slower, but memory stays bounded */
        }
    } else {
        slot.node = append(paths, parent, function);
        *is_alias = false;
        if (slot.node == CS_NO_NODE) {
            return CS_NO_NODE;
        }
    }
    return insert(paths, slot) == CS_REBUILD_OK ? slot.node : CS_NO_NODE;
}

CS_EXPORT int cs_paths_open(struct cs_paths **out) {
    struct cs_paths *paths = malloc(sizeof *paths);
    *out = paths;
    if (paths == NULL) {
        return CS_REBUILD_NO_MEMORY;
    }
    int status = cs_paths_start(paths, UINT32_MAX, CS_PATHS_MERGED, CS_PATHS_MERGED);
    if (status != CS_REBUILD_OK) {
        cs_paths_close(paths);
        *out = NULL;
    }
    return status;
}

CS_EXPORT void cs_paths_close(struct cs_paths *paths) {
    if (paths != NULL) {
        cs_paths_free(paths);
        free(paths);
    }
}

CS_EXPORT int cs_paths_merge(struct cs_paths *paths, const struct cs_node *nodes, uint64_t count, int32_t *names) {
    for (uint64_t i = 0; i < count; i++) {
        uint32_t parent = CS_NO_NODE;
        if (nodes[i].parent != CS_NO_NODE) {
            if (nodes[i].parent >= i) {
                return CS_REBUILD_BAD_ARGUMENT;
            }
            parent = (uint32_t)names[nodes[i].parent];
        }
        bool ignored;
        uint32_t name = cs_paths_child(paths, parent, nodes[i].function, &ignored);
        if (name == CS_NO_NODE) {
            return CS_REBUILD_NO_MEMORY;
        }
        names[i] = (int32_t)name;
        struct cs_node *node = &paths->nodes[name];
        node->calls += nodes[i].calls;
        node->total_ns += nodes[i].total_ns;
        node->self_ns += nodes[i].self_ns;
        node->min_ns = nodes[i].min_ns < node->min_ns ? nodes[i].min_ns : node->min_ns;
        node->max_ns = nodes[i].max_ns > node->max_ns ? nodes[i].max_ns : node->max_ns;
    }
    return CS_REBUILD_OK;
}

CS_EXPORT int cs_paths_result(struct cs_paths *paths, const struct cs_node **nodes, uint64_t *count,
                              uint8_t *outermost) {
    *nodes = paths->nodes;
    *count = paths->count;
    for (uint64_t i = 0; outermost != NULL && i < paths->count; i++) {
        outermost[i] = ancestor(paths, paths->nodes[i].parent, paths->nodes[i].function) == CS_NO_NODE;
    }
    return CS_REBUILD_OK;
}

int cs_buckets_start(struct cs_bucket_table *table) {
    *table = (struct cs_bucket_table){.mask = FIRST_SLOTS - 1};
    table->slots = calloc(FIRST_SLOTS, sizeof *table->slots);
    return table->slots == NULL ? CS_REBUILD_NO_MEMORY : CS_REBUILD_OK;
}

int cs_buckets_grow(struct cs_bucket_table *table) {
    uint64_t mask = table->mask * 2 + 1;
    struct cs_bucket *slots = calloc(mask + 1, sizeof *slots);
    if (slots == NULL) {
        return CS_REBUILD_NO_MEMORY;
    }
    for (uint64_t i = 0; i <= table->mask; i++) {
        if (table->slots[i].function != 0) {
            uint64_t at = cs_mix((uint64_t)table->slots[i].function << 10 | table->slots[i].bucket) & mask;
            while (slots[at].function != 0) {
                at = (at + 1) & mask;
            }
            slots[at] = table->slots[i];
        }
    }
    free(table->slots);
    table->slots = slots;
    table->mask = mask;
    return CS_REBUILD_OK;
}

uint64_t cs_buckets_pack(struct cs_bucket_table *table) {
    uint64_t used = 0;
    for (uint64_t i = 0; i <= table->mask; i++) {
        if (table->slots[i].function != 0) {
            table->slots[used++] = table->slots[i];
        }
    }
    return used;
}

CS_EXPORT int cs_all_zero(const uint8_t *bytes, uint64_t length) {
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

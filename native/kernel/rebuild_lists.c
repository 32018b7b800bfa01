/* The growing lists of a rebuild. */
#include <stdlib.h>

#include "rebuild_state.h"

bool cs_append32(struct cs_list32 *list, uint32_t value) {
    if (list->count == list->capacity) {
        uint64_t capacity = list->capacity ? list->capacity * 2 : 64;
        uint32_t *items = realloc(list->items, capacity * sizeof *items);
        if (items == NULL) {
            return false;
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = value;
    return true;
}

bool cs_append64(struct cs_list64 *list, uint64_t value) {
    if (list->count == list->capacity) {
        uint64_t capacity = list->capacity ? list->capacity * 2 : 64;
        uint64_t *items = realloc(list->items, capacity * sizeof *items);
        if (items == NULL) {
            return false;
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = value;
    return true;
}

bool cs_append_captured(struct cs_rebuild *s, struct cs_captured value) {
    if (s->captured_count == s->captured_capacity) {
        uint64_t capacity = s->captured_capacity ? s->captured_capacity * 2 : 256;
        struct cs_captured *items = realloc(s->captured, capacity * sizeof *items);
        if (items == NULL) {
            cs_fail(s, CS_REBUILD_NO_MEMORY);
            return false;
        }
        s->captured = items;
        s->captured_capacity = capacity;
    }
    s->captured[s->captured_count++] = value;
    return true;
}

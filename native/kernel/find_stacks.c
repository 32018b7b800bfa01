/* Where the call stacks of a chunk are: they lie among its other events. */
#include "callscope/records.h"
#include "kernel.h"
#include <stdbool.h>
#include <stdint.h>

CS_EXPORT uint64_t cs_find_stacks(const uint8_t *events, uint64_t bytes, uint64_t *offsets, uint64_t capacity);

/* The offsets of whole stack events in `bytes` bytes after a chunk's header. Returns their number; more than `capacity`
 * says that only `capacity` were written. What cannot be read ends the chunk. */
CS_EXPORT uint64_t cs_find_stacks(const uint8_t *events, uint64_t bytes, uint64_t *offsets, uint64_t capacity) {
    const uint32_t *words = (const uint32_t *)events;
    const uint64_t head = sizeof(struct cs_stack_event) / 8;
    const uint64_t shared_head = sizeof(struct cs_stack_shared_event) / 8;
    uint64_t at = 0, end = bytes / 8, found = 0;
    while (at < end) {
        uint32_t second = words[2 * at + 1], kind = second & CS_EVENT_KIND_MASK;
        uint64_t units = second >> 3;
        if (kind == CS_EVENT_ENTRY || kind == CS_EVENT_CALL) {
            at += 2;
            continue;
        }
        if (kind != CS_EVENT_EXTENDED) {
            at++;
            continue;
        }
        if (units == 0 || units > end - at) {
            return found;
        }
        const struct cs_stack_event *stack = (const struct cs_stack_event *)(events + at * 8);
        bool whole = stack->type == CS_EXTENDED_STACK && units >= head && stack->count <= units - head;
        if (whole || (stack->type == CS_EXTENDED_STACK_SHARED && units >= shared_head)) {
            if (found < capacity) {
                offsets[found] = at * 8;
            }
            found++;
        }
        at += units;
    }
    return found;
}

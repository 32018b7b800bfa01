/* How many events a chunk holds: for the recorder's summary, which must not wait until calls are rebuilt. */
#include "callscope/records.h"
#include "kernel.h"
#include <stdint.h>

CS_EXPORT int64_t cs_count_events(const uint8_t *events, uint64_t bytes, uint64_t counts[6]);

/* Add the events in `bytes` bytes after a chunk's header to counts = {ENTRY, EXIT, TAIL, LANDING, CALL, INLINE_ENTRY};
 * scripts count as ENTRY and EXIT. Nothing is counted where nothing was written, nor an ENTRY that its writer never
 * finished. Returns the offset where reading had to stop.
 */
CS_EXPORT int64_t cs_count_events(const uint8_t *events, uint64_t bytes, uint64_t counts[6]) {
    const uint32_t *words = (const uint32_t *)events;
    uint64_t at = 0, end = bytes / 8;
    while (at < end) {
        uint32_t second = words[2 * at + 1];
        switch (second & CS_EVENT_KIND_MASK) {
        case CS_EVENT_ENTRY:
        case CS_EVENT_CALL:
            if (at + 2 > end) {
                return (int64_t)(at * 8);
            }
            counts[(second & CS_EVENT_KIND_MASK) == CS_EVENT_CALL ? 4 : 0] += words[2 * at + 2] != 0;
            at += 2;
            break;
        case CS_EVENT_EXIT:
            counts[1]++;
            at++;
            break;
        case CS_EVENT_TAIL:
            counts[2]++;
            at++;
            break;
        case CS_EVENT_LANDING:
            counts[3]++;
            at++;
            break;
        case CS_EVENT_EXTENDED:
            if (second >> 3 == 0 || second >> 3 > end - at) {
                return (int64_t)(at * 8);
            }
            if ((words[2 * at] & CS_LAST_FUNCTION) >= CS_SCRIPT_FIRST) {
                counts[words[2 * at] <= CS_LAST_FUNCTION ? 0 : 1]++;
            }
            counts[5] += words[2 * at] == CS_EXTENDED_INLINE_ENTRY;
            counts[1] += words[2 * at] == CS_EXTENDED_INLINE_EXIT;
            at += second >> 3;
            break;
        default:
            at++;
        }
    }
    return (int64_t)(end * 8);
}

CS_EXPORT uint64_t cs_list_entries(const uint8_t *events, uint64_t bytes, uint32_t *functions, uint64_t most);

/* The functions whose calls begin in `bytes` bytes after a chunk's header, in order, at most `most`; how many. */
CS_EXPORT uint64_t cs_list_entries(const uint8_t *events, uint64_t bytes, uint32_t *functions, uint64_t most) {
    const uint32_t *words = (const uint32_t *)events;
    uint64_t at = 0, end = bytes / 8, count = 0;
    while (at < end && count < most) {
        uint32_t second = words[2 * at + 1], kind = second & CS_EVENT_KIND_MASK, first = words[2 * at];
        if (kind == CS_EVENT_ENTRY || kind == CS_EVENT_CALL) {
            if (at + 2 > end) {
                return count;
            }
            if (kind == CS_EVENT_ENTRY && words[2 * at + 2] != 0) {
                functions[count++] = words[2 * at + 2];
            }
            at += 2;
        } else if (kind == CS_EVENT_EXTENDED) {
            if (second >> 3 == 0 || second >> 3 > end - at) {
                return count;
            }
            if (first <= CS_LAST_FUNCTION && first >= CS_SCRIPT_FIRST) {
                functions[count++] = first;
            }
            at += second >> 3;
        } else {
            at++;
        }
    }
    return count;
}

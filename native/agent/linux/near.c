/* Copies of the coarse clock's hot path in the stub page of a region (near.inc). */
#include "../core/memory.h"
#include "../core/plan.h"
#include "linux.h"

#define HIDDEN __attribute__((visibility("hidden")))

/* In place of what the copy is given. */
#define ID_MARK 0x2a2a2a2au
#define CLOCK_MARK 0x2b2b2b2b2b2b2b2bull
#define ROUTINE_MARK 0x2c2c2c2cu

struct near {
    uint64_t stub;
    const uint8_t *start, *end;
};
extern const struct near cs_near_routines[] HIDDEN, cs_near_routines_end[] HIDDEN;

static void copy(uint8_t *to, const struct near *near, uint32_t id_base, const uint8_t *pointer) {
    uint64_t bytes = (uint64_t)(near->end - near->start), clock = (uint64_t)cs_coarse_clock, word;
    memcpy(to, near->start, bytes);
    for (uint8_t *at = to; at + sizeof(uint32_t) <= to + bytes; at++) {
        uint32_t half;
        memcpy(&half, at, sizeof half);
        if (half == ID_MARK)
            memcpy(at, &id_base, sizeof id_base);
        else if (half == ROUTINE_MARK) {
            half = (uint32_t)(pointer - (at + sizeof half));
            memcpy(at, &half, sizeof half);
        }
        if (at + sizeof word <= to + bytes) {
            memcpy(&word, at, sizeof word);
            if (word == CLOCK_MARK)
                memcpy(at, &clock, sizeof clock);
        }
    }
}

void cs_near_write(uint8_t *region, uint32_t id_base) {
    if (!cs_coarse_clock || cs_session.asks)
        return;
    for (const struct near *near = cs_near_routines; near < cs_near_routines_end; near++)
        copy(region + near->stub * CS_STUB_BYTES, near, id_base,
             region + CS_STUB_POINTERS + near->stub * sizeof(uint64_t));
}

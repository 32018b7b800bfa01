/* Writing a function's own code back while threads run.
 *
 * A patch is a jump, one instruction, so a thread stands before it or has left it; those in the trampoline come back
 * behind what was overwritten. A jump within eight aligned bytes is replaced at once. One that is not first becomes a
 * jump to itself, two bytes that are stored at once; when every processor has seen those, nobody executes the rest,
 * which is written; when that is seen, so are the first two. Whoever comes meanwhile waits a few microseconds there. */
#include "memory.h"
#include "plan.h"
#include "system.h"

#define JUMP 0xe9
#define JUMP_BYTES 5u
#define SHORT_JUMP 0xeb
#define SHORT_BYTES 2u

#define LONGEST_RUN 64u /* of instructions that were moved to make room for an island, and more */

enum step { SPIN, REST, HEAD, STEPS };

static const uint8_t spin[SHORT_BYTES] = {SHORT_JUMP, 0xfe};

/* `bytes` bytes within eight aligned ones. */
static void store(uint8_t *place, const uint8_t *code, uint32_t bytes) {
    uint64_t *word = (uint64_t *)((uint64_t)place & ~7ull), value = *word;
    memcpy((uint8_t *)&value + ((uint64_t)place & 7), code, bytes);
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static bool fits(const uint8_t *place, uint32_t bytes) {
    return ((uint64_t)place & 7) + bytes <= 8;
}

/* Whether the patch is there, as it was written. */
static bool is_whole(const struct cs_patch *patch, const uint8_t *place, int64_t shift) {
    uint8_t code[sizeof patch->new];
    memcpy(code, patch->new, sizeof code);
    if (patch->rel_offset != CS_PATCH_NO_REL) {
        int32_t displacement;
        memcpy(&displacement, code + patch->rel_offset, sizeof displacement);
        displacement += (int32_t)shift;
        memcpy(code + patch->rel_offset, &displacement, sizeof displacement);
    }
    return !memcmp(place, code, patch->length);
}

static uint32_t find_patch(const struct cs_plan *plan, uint32_t rva) {
    uint32_t low = 0, high = plan->header->patch_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (plan->patches[middle].rva < rva)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool in_map(const uint8_t *map, uint32_t index) {
    return map[index / 8] >> index % 8 & 1;
}

/* Islands stay: what leads to them are short jumps, before which a thread may stand, and the displacements, a byte, of
 * other short branches, which are left as they are. */
static void mark_islands(const struct cs_plan *plan, uint8_t *islands) {
    for (uint32_t i = 0; i < plan->header->patch_count; i++) {
        const struct cs_patch *patch = &plan->patches[i];
        bool is_jump = patch->length == SHORT_BYTES && patch->new[0] == SHORT_JUMP;
        if (!is_jump && patch->length != 1)
            continue;
        int8_t displacement = (int8_t)patch->new[patch->length - 1];
        uint32_t target = patch->rva + patch->length + (uint32_t)(int32_t)displacement;
        uint32_t index = find_patch(plan, target);
        if (index < plan->header->patch_count && plan->patches[index].rva == target)
            islands[index / 8] |= (uint8_t)(1u << index % 8);
    }
}

/* Whether an island lies in what a patch displaced, so that its code is whole in the trampoline only. */
static bool hosts_island(const struct cs_plan *plan, const uint8_t *islands, uint32_t index) {
    uint32_t end = plan->patches[index].rva + LONGEST_RUN;
    for (uint32_t i = index + 1; i < plan->header->patch_count && plan->patches[i].rva < end; i++)
        if (in_map(islands, i))
            return true;
    return false;
}

/* One step of a jump that is not replaced at once; false when that was all. */
static void take_step(enum step step, const struct cs_patch *patch, uint8_t *place) {
    if (step == SPIN)
        store(place, spin, SHORT_BYTES);
    else if (step == REST)
        for (uint32_t i = SHORT_BYTES; i < JUMP_BYTES; i++)
            *(volatile uint8_t *)(place + i) = patch->old[i];
    else
        store(place, patch->old, SHORT_BYTES);
}

void cs_plan_restore(const struct cs_plan *plan, uint8_t *image, int64_t shift, const uint8_t *functions) {
    uint32_t count = plan->header->patch_count;
    uint64_t bytes = count / 8 + 1;
    uint8_t *islands = cs_system_memory(bytes), *stepped = cs_system_memory(bytes);
    if (islands && stepped)
        mark_islands(plan, islands);
    for (enum step step = SPIN; islands && stepped && step < STEPS; step++) {
        for (uint32_t i = 0; i < count; i++) {
            const struct cs_patch *patch = &plan->patches[i];
            uint8_t *place = image + patch->rva;
            if (patch->function == CS_PATCH_ALWAYS || !in_map(functions, patch->function) || in_map(islands, i))
                continue;
            bool is_far = patch->length == JUMP_BYTES && patch->new[0] == JUMP;
            bool is_near = patch->length == SHORT_BYTES && patch->new[0] == SHORT_JUMP;
            if (in_map(stepped, i)) {
                take_step(step, patch, place);
                continue;
            }
            if (step != SPIN || !(is_far || is_near) || !fits(place, SHORT_BYTES) || hosts_island(plan, islands, i) ||
                !is_whole(patch, place, shift))
                continue;
            if (fits(place, patch->length))
                store(place, patch->old, patch->length);
            else {
                stepped[i / 8] |= (uint8_t)(1u << i % 8);
                take_step(SPIN, patch, place);
            }
        }
        cs_system_sync_cores();
    }
    if (islands)
        cs_system_release(islands, bytes);
    if (stepped)
        cs_system_release(stepped, bytes);
}

/* Gates: the calls of the stub page in trampolines, closed and opened while threads run.
 *
 * A gate is one instruction of five bytes within eight aligned ones, which are stored at once: a thread sees the call
 * or the no-operation, never a mixture (AMD64 manual volume 2, 7.6.1, "Cross-Modifying Code"; processors of Intel's
 * keep the same). What it has fetched before it may still execute: cs_system_sync_cores ends that. */
#include "memory.h"
#include "plan.h"

#define CALL_BYTES 5u

static const uint8_t nothing[CALL_BYTES] = {0x0f, 0x1f, 0x44, 0, 0}; /* nop dword ptr [rax+rax] */

static bool is_in(const uint8_t *functions, uint32_t function) {
    return functions && function != CS_NO_FUNCTION && functions[function / 8] >> function % 8 & 1;
}

static uint32_t slot_of(const uint8_t code[CALL_BYTES], uint32_t place) {
    int32_t displacement;
    memcpy(&displacement, code + 1, sizeof displacement);
    return (place + CALL_BYTES + (uint32_t)displacement) / CS_STUB_BYTES;
}

static bool is_entry(uint32_t slot) {
    return slot == CS_STUB_ENTRY || slot == CS_STUB_ENTRY_RED_ZONE || slot == CS_STUB_ENTRY_CAPTURE ||
           slot == CS_STUB_ENTRY_CAPTURE_RED_ZONE || slot == CS_STUB_ENTRY_WORDS ||
           slot == CS_STUB_ENTRY_WORDS_RED_ZONE;
}

/* What a gate is while it is closed. The trampoline of a call with words stores them in any case: it is given room. */
static void closed_code(uint8_t code[CALL_BYTES], uint32_t place) {
    int32_t displacement;
    memcpy(&displacement, code + 1, sizeof displacement);
    uint32_t slot = slot_of(code, place);
    if (slot == CS_STUB_ENTRY_WORDS || slot == CS_STUB_ENTRY_WORDS_RED_ZONE) {
        displacement += (int32_t)((CS_STUB_OFF_WORDS - slot) * CS_STUB_BYTES);
        memcpy(code + 1, &displacement, sizeof displacement);
    } else
        memcpy(code, nothing, sizeof nothing);
}

void cs_gates_set(const struct cs_plan *plan, uint8_t *region, bool off, const struct cs_mutes *mutes) {
    const struct cs_plan_header *header = plan->header;
    const struct cs_gate *gates = (const struct cs_gate *)((const uint8_t *)header + header->gate_offset);
    const uint8_t *original = (const uint8_t *)header + header->region_offset;
    for (uint32_t i = 0; i < header->gate_count; i++) {
        uint32_t place = gates[i].place, start = place & ~7u;
        uint64_t *word = (uint64_t *)(region + start), before = *word, after = before;
        uint8_t code[CALL_BYTES];
        memcpy(code, original + place, sizeof code);
        uint32_t function = gates[i].function;
        if (off || is_in(mutes->restored, function) ||
            (is_in(mutes->muted, function) && is_entry(slot_of(code, place))))
            closed_code(code, place);
        memcpy((uint8_t *)&after + place % 8, code, sizeof code);
        if (before != after)
            __atomic_store_n(word, after, __ATOMIC_RELEASE);
    }
}

/* Plans: checked as if a stranger had written them, for a wrong byte in the program's text is fatal. */
#include "plan.h"

#include "memory.h"

#define CALL_BYTES 5u

static bool table_fits(uint64_t offset, uint64_t count, uint64_t each, uint64_t bytes) {
    return offset <= bytes && offset % 4 == 0 && count <= (bytes - offset) / each;
}

static bool region_fits(const struct cs_plan_header *header, uint64_t bytes) {
    uint64_t region = header->region_bytes, page = CS_PLAN_PAGE - 1;
    return header->region_offset <= bytes && region <= bytes - header->region_offset && region < 0x7fff0000 &&
           !(header->region_offset & page) && !(header->code_bytes & page) && header->code_bytes >= CS_PLAN_PAGE &&
           header->code_bytes <= region && !(header->symfile & page) && header->symfile <= region &&
           header->symfile_bytes <= region - header->symfile && header->frames <= region &&
           header->frames_bytes <= region - header->frames && !(header->sites & page) &&
           header->sites >= header->code_bytes && header->sites <= region && !(header->captures & 7) &&
           header->captures >= header->code_bytes && header->captures <= region &&
           header->captures_bytes <= region - header->captures;
}

static bool selected(const struct cs_plan *plan, uint32_t function) {
    return !plan->chosen || plan->chosen[function / 8] >> function % 8 & 1;
}

/* FNV-1a, 32 bits (draft-eastlake-fnv, section 2). Most damage to a header leaves numbers that make sense. */
static uint32_t checksum(const uint8_t *bytes, uint64_t count) {
    uint32_t value = 0x811c9dc5;
    for (uint64_t i = 0; i < count; i++)
        value = (value ^ bytes[i]) * 0x01000193;
    return value;
}

static const struct cs_gate *all_gates(const struct cs_plan *plan) {
    return (const struct cs_gate *)((const uint8_t *)plan->header + plan->header->gate_offset);
}

static const char *check_patches(const struct cs_plan *plan) {
    const struct cs_plan_header *header = plan->header;
    uint64_t text = 0, end = 0;
    for (uint32_t i = 0; i < header->text_count; i++) {
        const struct cs_text_range *range = &plan->texts[i];
        if ((range->rva | range->bytes) & (CS_PLAN_PAGE - 1) || range->rva < end ||
            (uint64_t)range->rva + range->bytes > header->image_span)
            return "bad text range in the plan";
        end = (uint64_t)range->rva + range->bytes;
    }
    end = 0;
    for (uint32_t i = 0; i < header->patch_count; i++) {
        const struct cs_patch *patch = &plan->patches[i];
        uint64_t stop = (uint64_t)patch->rva + patch->length;
        while (text < header->text_count && stop > (uint64_t)plan->texts[text].rva + plan->texts[text].bytes)
            text++;
        if (text == header->text_count || patch->rva < plan->texts[text].rva || patch->rva < end || !patch->length ||
            patch->length > sizeof patch->new ||
            (patch->rel_offset != CS_PATCH_NO_REL && patch->rel_offset + 4u > patch->length) ||
            (patch->function != CS_PATCH_ALWAYS && patch->function >= header->function_count))
            return "bad patch in the plan";
        end = stop;
    }
    for (uint32_t i = 0; i < header->fixup_count; i++)
        if (plan->fixups[i] < CS_PLAN_PAGE || plan->fixups[i] + 4ull > header->code_bytes)
            return "bad fixup in the plan";
    const struct cs_gate *gates = all_gates(plan);
    for (uint32_t i = 0; i < header->gate_count; i++)
        if (gates[i].place < CS_PLAN_PAGE || gates[i].place + 8ull > header->code_bytes ||
            gates[i].place % 8 + CALL_BYTES > 8)
            return "bad gate in the plan";
    return NULL;
}

const char *cs_plan_open(struct cs_plan *plan, const uint8_t *file, uint64_t bytes, uint64_t span,
                         const uint8_t *build_id, uint32_t build_id_bytes) {
    const struct cs_plan_header *header = (const struct cs_plan_header *)file;
    if (bytes < sizeof *header || header->magic != CS_PLAN_MAGIC)
        return "not a plan";
    if (header->version != CS_PLAN_VERSION || header->header_size < sizeof *header)
        return "plan of another version";
    if (header->checksum != checksum(file, offsetof(struct cs_plan_header, checksum)))
        return "damaged plan";
    if (!region_fits(header, bytes) || header->region_offset < sizeof *header ||
        !table_fits(header->patch_offset, header->patch_count, sizeof(struct cs_patch), bytes) ||
        !table_fits(header->fixup_offset, header->fixup_count, sizeof(uint32_t), bytes) ||
        !table_fits(header->text_offset, header->text_count, sizeof(struct cs_text_range), bytes) ||
        !table_fits(header->moved_offset, header->moved_count, sizeof(struct cs_moved), bytes) ||
        !table_fits(header->gate_offset, header->gate_count, sizeof(struct cs_gate), bytes))
        return "plan file cut short";
    if (((header->image_span + CS_PLAN_PAGE - 1) & ~(CS_PLAN_PAGE - 1ull)) != span || header->build_id_bytes > 32 ||
        (build_id_bytes && header->build_id_bytes &&
         (header->build_id_bytes != build_id_bytes || memcmp(header->build_id, build_id, build_id_bytes))))
        return "plan of another file";
    plan->header = header;
    plan->patches = (const struct cs_patch *)(file + header->patch_offset);
    plan->fixups = (const uint32_t *)(file + header->fixup_offset);
    plan->texts = (const struct cs_text_range *)(file + header->text_offset);
    return check_patches(plan);
}

uint64_t cs_plan_pages(const struct cs_plan *plan) {
    uint64_t pages = 0, last = ~0ull;
    for (uint32_t i = 0; i < plan->header->patch_count; i++) {
        const struct cs_patch *patch = &plan->patches[i];
        if (patch->rva / CS_PLAN_PAGE == last ||
            (patch->function != CS_PATCH_ALWAYS && !selected(plan, patch->function)))
            continue;
        last = patch->rva / CS_PLAN_PAGE;
        pages++;
    }
    return pages;
}

static bool add_to_displacement(uint8_t *place, int64_t amount) {
    int32_t value;
    __builtin_memcpy(&value, place, sizeof value);
    int64_t moved = value + amount;
    value = (int32_t)moved;
    __builtin_memcpy(place, &value, sizeof value);
    return value == moved;
}

bool cs_plan_shift(const struct cs_plan *plan, uint8_t *region, int64_t shift) {
    for (uint32_t i = 0; shift && i < plan->header->fixup_count; i++)
        if (!add_to_displacement(region + plan->fixups[i], -shift))
            return false;
    return true;
}

bool cs_plan_number_captures(const struct cs_plan *plan, uint8_t *region, uint32_t id_base) {
    uint64_t at = plan->header->captures, end = at + plan->header->captures_bytes;
    while (at < end) {
        struct cs_capture *capture = (struct cs_capture *)(region + at);
        if (end - at < sizeof *capture || capture->bytes % 8 || capture->bytes > end - at ||
            capture->bytes <
                sizeof *capture + (capture->entry_count + capture->exit_count) * sizeof(struct cs_capture_op))
            return false;
        capture->function += id_base;
        at += capture->bytes;
    }
    return true;
}

/* routines.inc */
extern const uint64_t cs_routines[][12][CS_STUB_COUNT] __attribute__((visibility("hidden")));

const uint64_t *cs_plan_routines(uint32_t set) {
    uint32_t deep = cs_session.asks ? 1 : 0, ring = cs_session.features & CS_FEATURE_KEEP_LAST ? 2 : 0;
    if (cs_session.features & CS_FEATURE_COARSE_CLOCK)
        return cs_routines[set][8 + deep + ring];
    return cs_routines[set][2 * (deep + ring) + (cs_session.features & CS_FEATURE_NO_CLOCK ? 1 : 0)];
}

void cs_plan_write_stubs(uint8_t *region, uint32_t id_base, const uint64_t routines[CS_STUB_COUNT]) {
    for (uint32_t slot = 0; slot < CS_STUB_COUNT; slot++) {
        uint8_t *code = region + slot * CS_STUB_BYTES;
        if (slot == CS_STUB_ENTRY || slot == CS_STUB_ENTRY_RED_ZONE) {
            *code++ = 0x8d; /* lea ecx, [rcx + id_base] */
            *code++ = 0x89;
            __builtin_memcpy(code, &id_base, sizeof id_base);
            code += sizeof id_base;
        }
        uint8_t *pointer = region + CS_STUB_POINTERS + slot * sizeof(uint64_t);
        int32_t displacement = (int32_t)(pointer - (code + 6));
        *code++ = 0xff; /* jmp [rip + displacement] */
        *code++ = 0x25;
        __builtin_memcpy(code, &displacement, sizeof displacement);
        __builtin_memcpy(pointer, &routines[slot], sizeof routines[slot]);
    }
}

static uint64_t low_bytes(uint32_t length) {
    return length == 8 ? ~0ull : (1ull << 8 * length) - 1;
}

/* The eight bytes at `place`, of which only `length` need be there. */
static uint64_t read_word(const uint8_t *place, uint32_t length, bool whole) {
    uint64_t word = 0;
    if (whole)
        return *(const uint64_t *)place;
    for (uint32_t i = 0; i < length; i++)
        word |= (uint64_t)place[i] << 8 * i;
    return word;
}

/* Eight bytes at once: should a thread run here after all, it sees the old instruction or the new one, not a mixture.
 */
static void write_word(uint8_t *place, uint64_t word, uint32_t length, bool whole) {
    if (whole)
        *(uint64_t *)place = word;
    else
        for (uint32_t i = 0; i < length; i++)
            place[i] = (uint8_t)(word >> 8 * i);
}

/* Whether the eight bytes from a patch on lie in its text range; `text`: that range, or one before it. */
static bool has_whole_word(const struct cs_plan *plan, const struct cs_patch *patch, uint32_t *text) {
    while ((uint64_t)patch->rva + patch->length > (uint64_t)plan->texts[*text].rva + plan->texts[*text].bytes)
        ++*text;
    return (uint64_t)patch->rva + 8 <= (uint64_t)plan->texts[*text].rva + plan->texts[*text].bytes;
}

void cs_plan_revert(const struct cs_plan *plan, uint8_t *image, int64_t shift) {
    const struct cs_plan_header *header = plan->header;
    for (uint32_t i = 0, text = 0; i < header->patch_count; i++) {
        const struct cs_patch *patch = &plan->patches[i];
        uint32_t length = patch->length;
        bool whole = has_whole_word(plan, patch, &text);
        uint8_t *place = image + patch->rva;
        uint64_t mask = low_bytes(length), old, new, now = read_word(place, length, whole);
        __builtin_memcpy(&new, patch->new, sizeof new);
        __builtin_memcpy(&old, patch->old, sizeof old);
        if (patch->rel_offset != CS_PATCH_NO_REL)
            add_to_displacement((uint8_t *)&new + patch->rel_offset, shift);
        if (!((now ^ new) & mask))
            write_word(place, (now & ~mask) | (old & mask), length, whole);
    }
}

const char *cs_plan_apply(const struct cs_plan *plan, uint8_t *image, int64_t shift, uint8_t *refused,
                          struct cs_plan_outcome *outcome) {
    const struct cs_plan_header *header = plan->header;
    *outcome = (struct cs_plan_outcome){0};
    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint32_t i = 0, text = 0; i < header->patch_count; i++) {
            const struct cs_patch *patch = &plan->patches[i];
            uint32_t function = patch->function, length = patch->length;
            if (function != CS_PATCH_ALWAYS && !selected(plan, function))
                continue;
            bool whole = has_whole_word(plan, patch, &text);
            uint8_t *place = image + patch->rva;
            uint64_t mask = low_bytes(length), old, new, now = read_word(place, length, whole);
            __builtin_memcpy(&new, patch->new, sizeof new);
            bool moved = shift && patch->rel_offset != CS_PATCH_NO_REL;
            if (moved && !add_to_displacement((uint8_t *)&new + patch->rel_offset, shift))
                return "its trampolines are out of reach";
            if (!pass) {
                __builtin_memcpy(&old, patch->old, sizeof old);
                if (!((now ^ old) & mask))
                    continue;
                /* Such patches are what others jump to: without one, nothing can be applied. */
                if (function == CS_PATCH_ALWAYS)
                    return "the program's text is not the file's";
                refused[function / 8] |= (uint8_t)(1u << function % 8);
                outcome->refused++;
                continue;
            }
            if (function != CS_PATCH_ALWAYS && refused[function / 8] >> function % 8 & 1)
                continue;
            write_word(place, (now & ~mask) | (new &mask), length, whole);
            outcome->applied++;
        }
    return NULL;
}

const struct cs_patch *cs_plan_patch_around(const struct cs_plan *plan, uint32_t rva) {
    uint32_t low = 0, high = plan->header->patch_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (plan->patches[middle].rva < rva)
            low = middle + 1;
        else
            high = middle;
    }
    const struct cs_patch *before = low ? &plan->patches[low - 1] : NULL;
    return before && rva < (uint64_t)before->rva + before->length ? before : NULL;
}

static const struct cs_moved *all_moved(const struct cs_plan *plan) {
    return (const struct cs_moved *)((const uint8_t *)plan->header + plan->header->moved_offset);
}

const struct cs_moved *cs_plan_moved_to(const struct cs_plan *plan, uint32_t place) {
    const struct cs_moved *moved = all_moved(plan);
    for (uint32_t i = 0; i < plan->header->moved_count; i++)
        if (moved[i].place == place)
            return &moved[i];
    return NULL;
}

const struct cs_moved *cs_plan_moved_from(const struct cs_plan *plan, uint32_t rva) {
    const struct cs_moved *moved = all_moved(plan);
    uint32_t low = 0, high = plan->header->moved_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (moved[middle].rva < rva)
            low = middle + 1;
        else
            high = middle;
    }
    return low < plan->header->moved_count && moved[low].rva == rva ? &moved[low] : NULL;
}

/* Putting a plan into the process: its trampolines above the image, their unwind information, its patches. */
#include "../core/memory.h"
#include "../core/plan.h"
#include "../core/system.h"
#include "windows_agent.h"

#define REACH 0x7fff0000ull /* of a 32-bit displacement, less a margin */
#define GRANULARITY 0x10000ull
#define MEMORY_BASIC 0 /* MemoryBasicInformation */
#define EXECUTABLE (PAGE_EXECUTE | PAGE_EXECUTE_READ | PAGE_EXECUTE_READWRITE | PAGE_EXECUTE_WRITECOPY)

void cs_off(void);
void cs_off_words(void);

static uint8_t *memory_at(uint64_t address, uint64_t bytes) {
    void *base = (void *)address;
    SIZE_T size = bytes;
    return NtAllocateVirtualMemory(CS_SELF, &base, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) ? NULL : base;
}

/* Memory above the image and within its reach: unwind information is found by unsigned distances from the base. */
static uint8_t *memory_above(const struct cs_image *image, uint64_t bytes) {
    uint64_t at = (uint64_t)image->base + image->span, limit = (uint64_t)image->base + REACH - bytes;
    while ((at = (at + GRANULARITY - 1) & ~(GRANULARITY - 1)) <= limit) {
        MEMORY_BASIC_INFORMATION information;
        if (NtQueryVirtualMemory(CS_SELF, (void *)at, MEMORY_BASIC, &information, sizeof information, NULL))
            return NULL;
        uint64_t end = (uint64_t)information.BaseAddress + information.RegionSize;
        uint8_t *place = information.State == MEM_FREE && end >= at + bytes ? memory_at(at, bytes) : NULL;
        if (place)
            return place;
        at = end > at ? end : at + GRANULARITY;
    }
    return NULL;
}

static bool stopped; /* nothing is recorded, by the program's wish */

static bool protect(const uint8_t *start, uint64_t bytes, ULONG protection, ULONG *old) {
    void *base = (void *)start;
    SIZE_T size = bytes;
    return !NtProtectVirtualMemory(CS_SELF, &base, &size, protection, old);
}

static void shift_frames(RUNTIME_FUNCTION *frames, uint64_t count, int64_t shift) {
    for (uint64_t i = 0; i < count; i++) {
        frames[i].BeginAddress += (DWORD)shift;
        frames[i].EndAddress += (DWORD)shift;
        frames[i].UnwindData += (DWORD)shift;
    }
}

/* What a trampoline calls in place of a slot's routine. */
static uint64_t off_routine(uint32_t slot) {
    bool stores = slot == CS_STUB_ENTRY_WORDS || slot == CS_STUB_ENTRY_WORDS_RED_ZONE;
    return (uint64_t)(stores ? cs_off_words : cs_off);
}

/* Fill the region and let it be executed. */
static const char *make_region(uint8_t *region, const struct cs_plan *plan, const struct cs_image *image,
                               uint32_t id_base) {
    const struct cs_plan_header *header = plan->header;
    int64_t shift = region - image->base - header->delta;
    uint64_t frame_count = header->frames_bytes / CS_RUNTIME_FUNCTION_BYTES, data = header->sites - header->code_bytes;
    RUNTIME_FUNCTION *frames = (RUNTIME_FUNCTION *)(region + header->frames);
    ULONG old;
    memcpy(region, (const uint8_t *)header + header->region_offset, header->region_bytes);
    cs_plan_write_stubs(region, id_base, cs_plan_routines(cs_slots_wide));
    if (stopped)
        cs_gates_set(plan, region, true, &(struct cs_mutes){NULL, NULL});
    shift_frames(frames, frame_count, shift);
    if (!cs_plan_number_captures(plan, region, id_base))
        return "damaged plan";
    if (!cs_plan_shift(plan, region, shift) || !protect(region, header->code_bytes, PAGE_EXECUTE_READ, &old) ||
        (data && !protect(region + header->code_bytes, data, PAGE_READONLY, &old)))
        return "its trampolines cannot be made executable";
    if (frame_count && !RtlAddFunctionTable(frames, (DWORD)frame_count, (DWORD64)image->base))
        return "the system does not take its unwind information";
    return NULL;
}

static void drop_region(uint8_t *region, uint64_t frames, uint64_t frames_bytes) {
    if (frames_bytes)
        RtlDeleteFunctionTable((RUNTIME_FUNCTION *)(region + frames));
    cs_system_release(region, 0);
}

/* Make all text ranges writable, or give them back their protections in `old`. */
static bool protect_text(const struct cs_plan *plan, const struct cs_image *image, bool writable, ULONG *old) {
    for (uint32_t i = 0; i < plan->header->text_count; i++) {
        const struct cs_text_range *range = &plan->texts[i];
        ULONG before;
        if (!protect(image->base + range->rva, range->bytes, writable ? PAGE_EXECUTE_READWRITE : old[i], &before))
            return false;
        if (!writable)
            continue;
        old[i] = before;
        if (!(before & EXECUTABLE)) {
            protect(image->base + range->rva, range->bytes, before, &before);
            return false;
        }
    }
    return true;
}

/* The plans of patched modules, by their place in the table, with the files they lie in: detaching needs them again. */
static struct applied {
    struct cs_plan plan;
    int64_t shift;
} applied[CS_MODULE_LIMIT];

static struct applied *applied_to(const struct cs_module *module) {
    return &applied[module - cs_modules];
}

static void forget_plan(const struct cs_module *module) {
    cs_file_unview((const uint8_t *)applied_to(module)->plan.header);
    applied_to(module)->plan.header = NULL;
}

static const char *write_patches(const struct cs_plan *plan, const struct cs_image *image, const uint8_t *region,
                                 struct cs_plan_outcome *outcome) {
    const struct cs_plan_header *header = plan->header;
    uint64_t bitmap = (header->function_count / 8 + 8) & ~7ull, bytes = bitmap + header->text_count * sizeof(ULONG);
    uint8_t *memory = cs_system_memory(bytes);
    if (!memory)
        return "no memory";
    ULONG *old = (ULONG *)(memory + bitmap);
    const char *reason = "its text cannot be made writable";
    if (protect_text(plan, image, true, old)) {
        bool attached = cs_start_options.flags & CS_START_ATTACHED;
        if (!attached || cs_threads_stop(plan, image->base, region))
            reason = cs_plan_apply(plan, image->base, region - image->base - header->delta, memory, outcome);
        else
            reason = "its threads cannot be stopped outside of what is to be patched";
        if (attached)
            cs_threads_go_on();
        protect_text(plan, image, false, old);
    }
    cs_system_release(memory, bytes);
    return reason;
}

static const char *apply(struct cs_module *module, const struct cs_image *image, const struct cs_plan *plan,
                         uint32_t id_base) {
    const struct cs_plan_header *header = plan->header;
    uint8_t *region = memory_at((uint64_t)image->base + (uint64_t)header->delta, header->region_bytes);
    if (!region)
        region = memory_above(image, header->region_bytes);
    if (!region)
        return "no room for its trampolines within 2 GB above it";
    struct cs_plan_outcome outcome;
    const char *reason = make_region(region, plan, image, id_base);
    if (reason) {
        cs_system_release(region, 0);
        return reason;
    }
    if ((reason = write_patches(plan, image, region, &outcome))) {
        drop_region(region, header->frames, header->frames_bytes);
        return reason;
    }
    *applied_to(module) = (struct applied){*plan, region - image->base - header->delta};
    module->flags |= CS_MODULE_TRACED;
    module->hooked = header->features & CS_PLAN_HOOKS;
    if (module->hooked && !stopped)
        cs_hooks_start();
    module->id_base = id_base;
    module->function_count = header->function_count;
    module->patch_count = outcome.applied;
    module->patch_refused = outcome.refused;
    module->region = region;
    module->region_bytes = header->region_bytes;
    module->frames = header->frames;
    module->frames_bytes = header->frames_bytes;
    return NULL;
}

const char *cs_region_apply(struct cs_module *module, const struct cs_image *image, const struct cs_reply *reply) {
    struct cs_plan plan = {0};
    uint64_t bytes, chosen_bytes = 0;
    uint8_t *file = cs_file_view(reply->plan, &bytes), *chosen = NULL;
    if (!file)
        return "its plan cannot be read";
    const char *reason = cs_plan_open(&plan, file, bytes, image->span, image->id, sizeof image->id);
    if (!reason && (!reply->id_base || plan.header->image_kind != CS_PLAN_PE || plan.header->delta <= 0))
        reason = "bad answer of the recorder";
    if (!reason && reply->chosen[0]) {
        chosen = cs_file_view(reply->chosen, &chosen_bytes);
        if (!chosen || chosen_bytes < (plan.header->function_count + 7ull) / 8)
            reason = "its list of functions cannot be read";
        plan.chosen = chosen;
    }
    if (!reason && reply->roles[0]) {
        uint64_t role_bytes = 0;
        uint8_t *roles = cs_file_view(reply->roles, &role_bytes);
        if (roles && role_bytes >= plan.header->function_count)
            cs_filter_roles(roles, plan.header->function_count, reply->id_base);
        else
            reason = "the list of its functions' roles cannot be read";
        cs_file_unview(roles);
    }
    if (!reason)
        reason = apply(module, image, &plan, reply->id_base);
    if (reason)
        cs_file_unview(file);
    cs_file_unview(chosen);
    return reason;
}

void cs_region_release(struct cs_module *module) {
    if (module->region) {
        forget_plan(module);
        drop_region(module->region, module->frames, module->frames_bytes);
    }
    module->region = NULL;
}

static void turn_off(uint8_t *region) {
    ULONG old;
    if (!protect(region, CS_PLAN_PAGE, PAGE_EXECUTE_READWRITE, &old))
        return;
    for (uint32_t slot = 0; slot < CS_STUB_COUNT; slot++)
        __atomic_store_n((uint64_t *)(region + CS_STUB_POINTERS) + slot, off_routine(slot), __ATOMIC_RELEASE);
    protect(region, CS_PLAN_PAGE, old, &old);
}

/* Give the module its own code again; where that cannot be, its patches stay and lead past the agent. */
static void take_back(const struct cs_module *module) {
    struct applied *own = applied_to(module);
    struct cs_image image = {.base = (uint8_t *)module->base, .span = module->span};
    ULONG *old = (ULONG *)cs_system_memory(own->plan.header->text_count * sizeof(ULONG) + 1);
    if (old && protect_text(&own->plan, &image, true, old)) {
        if (cs_threads_stop(&own->plan, image.base, NULL))
            cs_plan_revert(&own->plan, image.base, own->shift);
        cs_threads_go_on();
        protect_text(&own->plan, &image, false, old);
    }
    if (old)
        cs_system_release(old, 0);
    forget_plan(module);
}

void cs_regions_off(void) {
    cs_hooks_stop();
    for (uint32_t i = 0; i < cs_module_count; i++) {
        if (!cs_modules[i].handle || !cs_modules[i].region)
            continue;
        turn_off(cs_modules[i].region);
        take_back(&cs_modules[i]);
    }
}

void cs_regions_switch(bool off) {
    ULONG old;
    bool hooked = false;
    stopped = off;
    for (uint32_t i = 0; i < cs_module_count; i++) {
        const struct cs_module *module = &cs_modules[i];
        const struct cs_plan *plan = &applied_to(module)->plan;
        if (!module->handle || !module->region || !plan->header ||
            !protect(module->region, plan->header->code_bytes, PAGE_EXECUTE_READWRITE, &old))
            continue;
        hooked |= module->hooked;
        cs_gates_set(plan, module->region, off, &(struct cs_mutes){NULL, NULL});
        protect(module->region, plan->header->code_bytes, old, &old);
    }
    if (off)
        cs_hooks_stop();
    else if (hooked)
        cs_hooks_start();
}

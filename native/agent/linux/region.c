/* Putting a plan into the process: mapping its trampolines within reach of the image, and writing its patches. */
#include "../core/memory.h"
#include "../core/plan.h"
#include "../core/system.h"
#include "linux.h"
#include "syscall.h"

#define PAGE 4096ull
#define REACH 0x7fff0000ull /* of a 32-bit displacement, less a margin */
#define STEP 0x1000000ull   /* between places that are tried */

/* A file of the session's cache in memory. */
struct mapping {
    uint8_t *data;
    uint64_t bytes;
    int descriptor;
};

static bool map_file(struct mapping *mapping, const char *path) {
    mapping->descriptor = cs_open(path, O_RDONLY);
    if (mapping->descriptor < 0)
        return false;
    mapping->bytes = cs_file_bytes(mapping->descriptor);
    mapping->data = mapping->bytes ? cs_map(0, mapping->bytes, PROT_READ, MAP_PRIVATE, mapping->descriptor, 0) : NULL;
    if (!mapping->data)
        cs_close(mapping->descriptor);
    return mapping->data;
}

static void unmap_file(struct mapping *mapping) {
    if (!mapping->data)
        return;
    cs_unmap(mapping->data, mapping->bytes);
    if (mapping->descriptor >= 0)
        cs_close(mapping->descriptor);
    mapping->data = NULL;
}

/* The file stays mapped, but not open: the program's descriptors are its own. */
static struct mapping kept_mapping(const struct mapping *mapping) {
    struct mapping kept = *mapping;
    if (kept.data)
        cs_close(kept.descriptor);
    kept.descriptor = -1;
    return kept;
}

/* Map at exactly `address`, never over something else; a file when it has a descriptor. */
static uint8_t *map_at(uint64_t address, uint64_t bytes, const struct mapping *file, uint64_t offset) {
    int flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (file ? 0 : MAP_ANONYMOUS);
    uint8_t *place =
        cs_map((void *)address, bytes, PROT_READ | PROT_WRITE, flags, file ? file->descriptor : -1, offset);
    if (place && (uint64_t)place != address) {
        cs_unmap(place, bytes); /* a kernel before 4.17 */
        return NULL;
    }
    return place;
}

/* Places within reach of [low, high), nearest first below and farthest first above: the heap grows from below. */
static uint8_t *map_within_reach(uint64_t low, uint64_t high, uint64_t bytes, const struct mapping *file,
                                 uint64_t offset) {
    if (high - low + bytes > REACH)
        return NULL;
    uint64_t lowest = high > REACH + 0x10000 ? high - REACH : 0x10000, highest = low + REACH - bytes;
    for (uint64_t at = low; at >= lowest + bytes + STEP;) {
        at -= STEP;
        uint8_t *place = map_at((at - bytes) & ~(PAGE - 1), bytes, file, offset);
        if (place)
            return place;
    }
    for (uint64_t at = highest; at > high + STEP; at -= STEP) {
        uint8_t *place = map_at(at & ~(PAGE - 1), bytes, file, offset);
        if (place)
            return place;
    }
    return NULL;
}

void *cs_map_near(uint64_t low, uint64_t high, uint64_t bytes, int protection) {
    uint8_t *place = map_within_reach(low, high, bytes, NULL, 0);
    if (place && protection != (PROT_READ | PROT_WRITE))
        cs_call3(SYS_mprotect, (long)place, (long)bytes, protection);
    return place;
}

/* The region at its planned place or another, writable; NULL when there is none within reach. */
static uint8_t *map_region(const struct cs_plan *plan, const struct cs_image *image, const struct mapping *file) {
    const struct cs_plan_header *header = plan->header;
    uint64_t planned = image->base + (uint64_t)header->delta;
    uint8_t *region = map_at(planned, header->region_bytes, file, header->region_offset);
    if (!region)
        region =
            map_within_reach(image->base, image->base + image->span, header->region_bytes, file, header->region_offset);
    return region;
}

static bool make_executable(uint8_t *region, const struct cs_plan_header *header) {
    return !cs_failed(cs_call3(SYS_mprotect, (long)region, (long)header->code_bytes, PROT_READ | PROT_EXEC));
}

/* Make the code of a region executable. From a file system mounted noexec that is refused: then use a copy. */
static bool seal_region(uint8_t *region, const struct cs_plan_header *header) {
    if (make_executable(region, header))
        return true;
    uint64_t bytes = header->region_bytes;
    uint8_t *copy = cs_system_memory(bytes);
    if (!copy)
        return false;
    memcpy(copy, region, bytes);
    long moved =
        cs_call6(SYS_mremap, (long)copy, (long)bytes, (long)bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (long)region, 0);
    if (cs_failed(moved))
        cs_system_release(copy, bytes);
    return !cs_failed(moved) && make_executable(region, header);
}

/* Set the protection of all text ranges, `extra` added to what the image asks for. */
static bool protect_text(const struct cs_plan *plan, const struct cs_image *image, int extra) {
    bool done = true;
    for (uint32_t i = 0; i < plan->header->text_count; i++) {
        const struct cs_text_range *range = &plan->texts[i];
        int protection = cs_image_protection(image, range->rva, range->bytes);
        if (protection < 0 || !(protection & PROT_EXEC) ||
            cs_failed(cs_call3(SYS_mprotect, (long)(image->base + range->rva), range->bytes, protection | extra)))
            done = false;
    }
    return done;
}

/* Let the text be written, and give it pages of its own. */
static bool open_text(const struct cs_plan *plan, const struct cs_image *image) {
    const struct cs_plan_header *header = plan->header;
    uint64_t pages = 0;
    if (!protect_text(plan, image, PROT_WRITE)) {
        protect_text(plan, image, 0);
        return false;
    }
    for (uint32_t i = 0; i < header->text_count; i++)
        pages += plan->texts[i].bytes / PAGE;
    /* A fault a page costs more than copying all of the text at once, unless few pages change. */
    if (cs_plan_pages(plan) > pages / 3)
        for (uint32_t i = 0; i < header->text_count; i++)
            cs_call3(SYS_madvise, (long)(image->base + plan->texts[i].rva), plan->texts[i].bytes, MADV_POPULATE_WRITE);
    return true;
}

/* Write the patches into text that is open. */
static const char *write_patches(const struct cs_plan *plan, const struct cs_image *image, int64_t shift,
                                 struct cs_plan_outcome *outcome) {
    uint64_t bitmap = plan->header->function_count / 8 + 1;
    uint8_t *refused = cs_system_memory(bitmap);
    if (!refused)
        return "no memory";
    const char *reason = cs_plan_apply(plan, (uint8_t *)image->base, shift, refused, outcome);
    cs_system_release(refused, bitmap);
    return reason;
}

/* The plans of modules of a session that can be taken back, by their place in the table. */
static struct applied {
    struct cs_plan plan;
    struct cs_image image;
    int64_t shift;
    struct mapping file, chosen;
    bool pending; /* prepared, not written */
    struct cs_mutes mutes;
    bool to_mute, to_restore;
} applied[CS_MODULE_LIMIT];

static struct applied *applied_to(const struct cs_module *module) {
    return &applied[module - cs_modules];
}

static bool is_kept(const struct cs_module *module) {
    return module->handle && module->region && applied_to(module)->plan.header;
}

static void forget_plan(const struct cs_module *module) {
    struct applied *own = applied_to(module);
    uint64_t bytes = own->plan.header ? own->plan.header->function_count / 8 + 1 : 0;
    if (own->mutes.muted)
        cs_system_release(own->mutes.muted, bytes);
    if (own->mutes.restored)
        cs_system_release(own->mutes.restored, bytes);
    unmap_file(&own->file);
    unmap_file(&own->chosen);
    memset(own, 0, sizeof *own);
}

static bool off;

static bool open_region(const struct cs_module *module, int extra) {
    return !cs_failed(cs_call3(SYS_mprotect, (long)module->region, (long)applied_to(module)->plan.header->code_bytes,
                               PROT_READ | PROT_EXEC | extra));
}

static void set_gates(const struct cs_module *module) {
    if (!is_kept(module) || !open_region(module, PROT_WRITE)) /* other threads are about to execute it */
        return;
    cs_gates_set(&applied_to(module)->plan, module->region, off, &applied_to(module)->mutes);
    open_region(module, 0);
}

void cs_regions_switch(bool to) {
    bool hooked = false;
    off = to;
    for (uint32_t i = 0; i < cs_module_count; i++) {
        hooked |= cs_modules[i].handle && cs_modules[i].hooked;
        set_gates(&cs_modules[i]);
    }
    if (off)
        cs_hooks_stop();
    else if (hooked)
        cs_hooks_start();
}

bool cs_regions_mute(uint32_t function, bool restore) {
    for (uint32_t i = 0; i < cs_module_count; i++) {
        const struct cs_module *module = &cs_modules[i];
        uint32_t index = function - module->id_base;
        struct applied *own = applied_to(module);
        if (!is_kept(module) || own->pending || index >= module->function_count)
            continue;
        uint64_t bytes = module->function_count / 8 + 1;
        if (!own->mutes.muted)
            own->mutes.muted = cs_system_memory(bytes);
        if (!own->mutes.restored)
            own->mutes.restored = cs_system_memory(bytes);
        uint8_t *map = restore ? own->mutes.restored : own->mutes.muted;
        if (!map)
            return false;
        map[index / 8] |= (uint8_t)(1u << index % 8);
        own->to_mute = true;
        own->to_restore |= restore;
        return true;
    }
    return false;
}

void cs_regions_settle_mutes(void) {
    for (uint32_t i = 0; i < cs_module_count; i++) {
        struct applied *own = applied_to(&cs_modules[i]);
        if (!is_kept(&cs_modules[i]) || !own->to_mute)
            continue;
        set_gates(&cs_modules[i]);
        if (own->to_restore && protect_text(&own->plan, &own->image, PROT_WRITE)) {
            cs_plan_restore(&own->plan, (uint8_t *)own->image.base, own->shift, own->mutes.restored);
            protect_text(&own->plan, &own->image, 0);
        }
        own->to_mute = own->to_restore = false;
    }
}

static const char *apply(struct cs_module *module, const struct cs_image *image, const struct cs_plan *plan,
                         const struct cs_reply *reply, const struct mapping *file, const struct mapping *chosen) {
    const struct cs_plan_header *header = plan->header;
    uint8_t *region = map_region(plan, image, file);
    if (!region)
        return "no room for its trampolines within 2 GB";
    int64_t shift = (int64_t)((uint64_t)region - image->base) - header->delta;
    struct cs_plan_outcome outcome = {0};
    cs_plan_write_stubs(region, reply->id_base, cs_plan_routines(0));
    cs_near_write(region, reply->id_base);
    if (off)
        cs_gates_set(plan, region, true, &(struct cs_mutes){NULL, NULL});
    const char *reason = NULL;
    if (!cs_plan_number_captures(plan, region, reply->id_base))
        reason = "damaged plan";
    else if (!cs_plan_shift(plan, region, shift) || !seal_region(region, header))
        reason = "its trampolines cannot be made executable";
    else if (!open_text(plan, image))
        reason = "its text cannot be made writable";
    else if (cs_attachment != CS_ATTACHMENT_PREPARES) {
        reason = write_patches(plan, image, shift, &outcome);
        protect_text(plan, image, 0);
    }
    if (reason) {
        cs_unmap(region, header->region_bytes);
        return reason;
    }
    forget_plan(module); /* of a session before this one */
    *applied_to(module) = (struct applied){
        .plan = *plan,
        .image = *image,
        .shift = shift,
        .file = kept_mapping(file),
        .chosen = kept_mapping(chosen),
        .pending = cs_attachment == CS_ATTACHMENT_PREPARES,
    };
    module->flags |= CS_MODULE_TRACED;
    module->hooked = header->features & CS_PLAN_HOOKS;
    if (module->hooked && !off)
        cs_hooks_start();
    module->id_base = reply->id_base;
    module->function_count = header->function_count;
    module->patch_count = outcome.applied;
    module->patch_refused = outcome.refused;
    module->region = region;
    module->region_bytes = header->region_bytes;
    module->frames = header->frames;
    module->frames_bytes = header->frames_bytes;
    module->debug.symfile = header->symfile_bytes ? region + header->symfile : NULL;
    module->debug.symfile_bytes = header->symfile_bytes;
    return NULL;
}

static bool take_roles(const struct cs_reply *reply, uint32_t count) {
    uint64_t bytes;
    uint8_t *roles = cs_system_view(reply->roles, &bytes);
    bool whole = roles && bytes >= count;
    if (whole)
        cs_filter_roles(roles, count, reply->id_base);
    if (roles)
        cs_system_unview(roles, bytes);
    return whole;
}

const char *cs_region_apply(struct cs_module *module, const struct cs_image *image, const struct cs_reply *reply) {
    struct mapping file = {0}, chosen = {0};
    struct cs_plan plan = {0};
    if (!map_file(&file, reply->plan))
        return "its plan cannot be read";
    const char *reason =
        cs_plan_open(&plan, file.data, file.bytes, image->span, image->build_id, image->build_id_bytes);
    if (!reason && !reply->id_base)
        reason = "bad answer of the recorder";
    if (!reason && reply->chosen[0]) {
        if (!map_file(&chosen, reply->chosen) || chosen.bytes < (plan.header->function_count + 7ull) / 8)
            reason = "its list of functions cannot be read";
        plan.chosen = chosen.data;
    }
    if (!reason && reply->roles[0] && !take_roles(reply, plan.header->function_count))
        reason = "the list of its functions' roles cannot be read";
    if (!reason)
        reason = apply(module, image, &plan, reply, &file, &chosen);
    if (reason) {
        unmap_file(&file);
        unmap_file(&chosen);
    }
    return reason;
}

void cs_region_release(struct cs_module *module) {
    forget_plan(module);
    if (module->region)
        cs_unmap(module->region, module->region_bytes);
    module->region = NULL;
}

const char *cs_region_commit(struct cs_module *module) {
    struct applied *own = applied_to(module);
    struct cs_plan_outcome outcome = {0};
    if (!is_kept(module) || !own->pending)
        return NULL;
    own->pending = false;
    const char *reason = write_patches(&own->plan, &own->image, own->shift, &outcome);
    module->patch_count = outcome.applied;
    module->patch_refused = outcome.refused;
    if (!reason)
        return NULL;
    protect_text(&own->plan, &own->image, 0);
    module->flags &= ~(uint32_t)CS_MODULE_TRACED;
    module->id_base = module->function_count = 0;
    cs_region_release(module);
    return reason;
}

void cs_region_open(const struct cs_module *module) {
    if (is_kept(module))
        open_text(&applied_to(module)->plan, &applied_to(module)->image);
}

void cs_region_revert(const struct cs_module *module) {
    const struct applied *own = applied_to(module);
    if (is_kept(module))
        cs_plan_revert(&own->plan, (uint8_t *)own->image.base, own->shift);
}

void cs_region_close(const struct cs_module *module) {
    if (is_kept(module))
        protect_text(&applied_to(module)->plan, &applied_to(module)->image, 0);
}

bool cs_region_moved(const struct cs_module *module, uint64_t at, uint64_t *to) {
    const struct applied *own = applied_to(module);
    uint64_t rva = at - module->base;
    *to = at;
    if (!is_kept(module) || !own->pending || rva >= module->span || !cs_plan_patch_around(&own->plan, (uint32_t)rva))
        return true;
    const struct cs_moved *moved = cs_plan_moved_from(&own->plan, (uint32_t)rva);
    if (moved)
        *to = (uint64_t)module->region + moved->place;
    return moved;
}

bool cs_region_patched(const struct cs_module *module, uint64_t at) {
    uint64_t rva = at - module->base;
    return is_kept(module) && rva < module->span && cs_plan_patch_around(&applied_to(module)->plan, (uint32_t)rva);
}

bool cs_region_back(const struct cs_module *module, uint64_t at, uint64_t *to) {
    const struct cs_plan *plan = &applied_to(module)->plan;
    uint64_t place = at - (uint64_t)module->region;
    if (!is_kept(module) || place >= module->region_bytes)
        return false;
    const struct cs_moved *moved = cs_plan_moved_to(plan, (uint32_t)place);
    if (moved)
        *to = module->base + moved->rva;
    return moved;
}

/* The table of modules and their journal records. */
#include "modules.h"

#include "memory.h"

struct cs_module cs_modules[CS_MODULE_LIMIT];
uint32_t cs_module_count;

struct cs_module *cs_module_add(void) {
    for (uint32_t i = 0; i < CS_MODULE_LIMIT; i++) {
        if (i < cs_module_count && cs_modules[i].handle)
            continue;
        memset(&cs_modules[i], 0, sizeof cs_modules[i]);
        if (i == cs_module_count)
            cs_module_count++;
        return &cs_modules[i];
    }
    cs_note(CS_NOTE_MODULES, "too many modules at a time: some are not recorded");
    return NULL;
}

struct cs_module *cs_module_find(const void *handle, uint64_t bias) {
    for (uint32_t i = 0; i < cs_module_count; i++)
        if (cs_modules[i].handle == handle && cs_modules[i].bias == bias)
            return &cs_modules[i];
    return NULL;
}

void cs_module_journal_load(const struct cs_module *module, const char *path) {
    struct cs_module_load load = {
        .base = module->base,
        .span = module->span,
        .id_base = module->id_base,
        .function_count = module->function_count,
        .patch_count = module->patch_count,
        .patch_refused = module->patch_refused,
        .module_flags = module->flags,
        .build_id_bytes = module->build_id_bytes,
        .region = (uint64_t)module->region,
        .region_bytes = module->region_bytes,
        .path_bytes = (uint32_t)cs_text_length(path),
    };
    memcpy(load.build_id, module->build_id, sizeof load.build_id);
    struct cs_part parts[] = {{&load, sizeof load}, {path, load.path_bytes}};
    cs_journal_write(CS_JOURNAL_MODULE_LOAD, cs_tsc(), NULL, parts, 2);
}

void cs_module_journal_unload(const struct cs_module *module, uint64_t tsc) {
    struct cs_module_unload unload = {.base = module->base, .span = module->span};
    struct cs_part part = {&unload, sizeof unload};
    cs_journal_write(CS_JOURNAL_MODULE_UNLOAD, tsc, NULL, &part, 1);
}

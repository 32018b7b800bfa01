/* Unwind tables in memory: each file is mapped once and stays, for a walk may be under way when its module goes. */
#include "unwind.h"

#include "memory.h"
#include "modules.h"
#include "system.h"

#define FILES 8192u

static struct file {
    uint64_t name; /* hash of its path, which holds the build-id; 0: free */
    struct cs_unwind_table table;
} files[FILES];

bool cs_unwind_ready;

/* FNV-1a, 64 bits (draft-eastlake-fnv, section 2). */
static uint64_t hash(const char *text) {
    uint64_t value = 0xcbf29ce484222325;
    for (; *text; text++)
        value = (value ^ (uint8_t)*text) * 0x100000001b3;
    return value ? value : 1;
}

static bool map_table(struct cs_unwind_table *table, const char *path, const struct cs_module *module) {
    uint64_t bytes = 0;
    uint8_t *data = cs_system_view(path, &bytes);
    if (data && cs_unwind_open(table, data, bytes, module->span, module->build_id, module->build_id_bytes))
        return true;
    if (data)
        cs_system_unview(data, bytes);
    return false;
}

void cs_unwind_module(struct cs_module *module, const char *path) {
    if (!path[0])
        return;
    uint64_t name = hash(path);
    struct file *file = NULL;
    for (uint32_t i = 0; i < FILES; i++) {
        file = &files[(name + i) % FILES];
        if (!file->name || file->name == name)
            break;
    }
    if (file->name != name) {
        if (file->name || !map_table(&file->table, path, module))
            return;
        file->name = name;
    }
    cs_unwind_add(&file->table, module->base, module->span, (uint64_t)module->region);
}

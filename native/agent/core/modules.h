/* The images in this process: which are there, which are patched, and with what. */
#ifndef CALLSCOPE_AGENT_MODULES_H
#define CALLSCOPE_AGENT_MODULES_H

#include "agent.h"

#define CS_MODULE_LIMIT 4096

/* gdb's jit_code_entry (GDB manual, "JIT Compilation Interface"). */
struct cs_debug_entry {
    struct cs_debug_entry *next, *previous;
    const void *symfile;
    uint64_t symfile_bytes;
};

/* A module with the outcome of its plan. */
struct cs_module {
    const void *handle; /* the loader's own record; NULL: this slot is free */
    uint64_t base;      /* address of the lowest page */
    uint64_t span;
    uint64_t bias; /* what the loader added to the file's addresses */
    const void *dynamic;
    bool seen;      /* found in the loader's list at the last look */
    uint32_t flags; /* MODULE_* */
    uint32_t id_base;
    uint32_t function_count;
    uint32_t patch_count, patch_refused;
    uint32_t build_id_bytes;
    uint8_t build_id[32];
    uint8_t *region; /* stub page and trampolines, or NULL */
    uint64_t region_bytes;
    uint64_t frames; /* offset of unwind tables in the region */
    uint64_t frames_bytes;
    bool hooked; /* it tells of inlined calls */
    bool frames_registered;
    uint64_t frames_object[16]; /* the unwinder's own record of them */
    struct cs_debug_entry debug;
};

/* The table; entries at and after cs_module_count were never used. Changed under process->module_lock only. */
extern struct cs_module cs_modules[CS_MODULE_LIMIT];
extern uint32_t cs_module_count;

/* ---- unwind_files.c */
/* Map the unwind table `path`, unless it is there already, and let it tell of the module. */
void cs_unwind_module(struct cs_module *module, const char *path);

/* ---- region.c of each system */
/* Lead all trampolines past the agent, or to it again. With the module lock held. */
void cs_regions_switch(bool off);

/* Note that entries of a function are not to be recorded, or with `restore` that it gets its own code back; false when
 * no module has it. `cs_regions_settle_mutes` does it. With the module lock held. */
bool cs_regions_mute(uint32_t function, bool restore);
void cs_regions_settle_mutes(void);

/* ---- modules.c */
/* A free slot, cleared; NULL when the table is full. */
struct cs_module *cs_module_add(void);
/* The slot of a loaded module, or NULL. */
struct cs_module *cs_module_find(const void *handle, uint64_t bias);
void cs_module_journal_load(const struct cs_module *module, const char *path);
void cs_module_journal_unload(const struct cs_module *module, uint64_t tsc);

#endif

/* Trampolines have unwind tables; here those who walk stacks hear of them.
 *
 * libgcc (and LLVM's libunwind) take tables at run time; they are found by symbol in whatever module exports them.
 * libgcc sorts a table at its first look-up, with malloc: that look-up is made here, not in somebody's signal handler.
 * A debugger is told through gdb's JIT interface: its two symbols are in this library's symbol table, but not exported,
 * so that programs with a JIT of their own keep theirs. */
#include "../core/memory.h"
#include "../core/system.h"
#include "linux.h"
#include "syscall.h"

enum { JIT_NOACTION, JIT_REGISTER, JIT_UNREGISTER };

struct jit_descriptor {
    uint32_t version;
    uint32_t action;
    struct cs_debug_entry *relevant;
    struct cs_debug_entry *first;
};

/* Hidden and used: gdb finds them by these names in the symbol table. */
extern struct jit_descriptor __jit_debug_descriptor;
void __jit_debug_register_code(void);

__attribute__((used)) struct jit_descriptor __jit_debug_descriptor = {1, JIT_NOACTION, NULL, NULL};

__attribute__((used, noinline)) void __jit_debug_register_code(void) {
    __asm__ volatile("" ::: "memory");
}

/* libgcc's interface (unwind-dw2-fde.h), or LLVM's (which keeps no object of ours). */
static struct {
    const struct cs_module *module; /* that exports it; NULL: none */
    bool llvm;
    bool ready; /* relocated: may be called */
    void (*add_object)(const void *frames, void *object);
    void *(*remove_object)(const void *frames);
    void (*add_section)(uint64_t frames);
    const void *(*find)(void *address, void *bases);
    uint64_t initialiser; /* its own DT_INIT, while ours stands in */
} unwinder;

static void debugger_told(struct cs_module *module, uint32_t action) {
    __jit_debug_descriptor.relevant = &module->debug;
    __jit_debug_descriptor.action = action;
    __jit_debug_register_code();
    __jit_debug_descriptor.action = JIT_NOACTION;
}

/* The section addresses of the symbol file are offsets in the region until now. */
static bool place_symfile(struct cs_module *module) {
    uint8_t *file = (uint8_t *)module->debug.symfile;
    uint64_t bytes = module->debug.symfile_bytes;
    Elf64_Ehdr *header = (Elf64_Ehdr *)file;
    if (!file || bytes < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) ||
        header->e_shentsize != sizeof(Elf64_Shdr) || header->e_shoff % 8 || header->e_shoff > bytes ||
        header->e_shnum > (bytes - header->e_shoff) / sizeof(Elf64_Shdr))
        return false;
    Elf64_Shdr *sections = (Elf64_Shdr *)(file + header->e_shoff);
    for (uint32_t i = 0; i < header->e_shnum; i++)
        if (sections[i].sh_flags & SHF_ALLOC)
            sections[i].sh_addr += (uint64_t)module->region;
    return true;
}

static void register_frames(struct cs_module *module) {
    if (!module->region || !module->frames_bytes || module->frames_registered || !unwinder.ready)
        return;
    const uint8_t *frames = module->region + module->frames;
    uint64_t bases[4];
    cs_mute();
    if (unwinder.llvm)
        unwinder.add_section((uint64_t)frames);
    else
        unwinder.add_object(frames, module->frames_object);
    if (unwinder.find)
        unwinder.find(module->region + CS_PLAN_PAGE, bases);
    cs_unmute();
    module->frames_registered = true;
}

void cs_frames_add(struct cs_module *module) {
    if (!module->region)
        return;
    register_frames(module);
    if (!place_symfile(module)) {
        module->debug.symfile = NULL;
        return;
    }
    module->debug.previous = NULL;
    module->debug.next = __jit_debug_descriptor.first;
    if (module->debug.next)
        module->debug.next->previous = &module->debug;
    __jit_debug_descriptor.first = &module->debug;
    debugger_told(module, JIT_REGISTER);
}

void cs_frames_remove(struct cs_module *module) {
    if (module->frames_registered && unwinder.ready) {
        cs_mute();
        if (unwinder.remove_object)
            unwinder.remove_object(module->region + module->frames);
        cs_unmute();
    }
    module->frames_registered = false;
    if (!module->region || !module->debug.symfile)
        return;
    struct cs_debug_entry *entry = &module->debug;
    if (entry->previous)
        entry->previous->next = entry->next;
    else
        __jit_debug_descriptor.first = entry->next;
    if (entry->next)
        entry->next->previous = entry->previous;
    debugger_told(module, JIT_UNREGISTER);
}

static void register_all(void) {
    for (uint32_t i = 0; i < cs_module_count; i++)
        if (cs_modules[i].handle)
            register_frames(&cs_modules[i]);
}

/* A library that is only mapped yet cannot be called. Its initialiser runs when it can: stand in for it. */
static void wait_for(const struct cs_module *module) {
    for (Elf64_Dyn *entry = (Elf64_Dyn *)module->dynamic; entry->d_tag != DT_NULL; entry++)
        if (entry->d_tag == DT_INIT) {
            unwinder.initialiser = module->bias + entry->d_un.d_ptr;
            entry->d_un.d_ptr = (uint64_t)cs_module_initialised - module->bias;
            return;
        }
}

static uint64_t exported(const struct cs_module *module, const char *name) {
    return cs_image_symbol(module->bias, module->dynamic, name);
}

void cs_frames_look_at(const struct cs_module *module, bool ready) {
    if (unwinder.module || !module->dynamic || !module->span)
        return;
    uint64_t add = exported(module, "__register_frame_info"), remove = exported(module, "__deregister_frame_info");
    if (add && remove) {
        unwinder.llvm = false;
        unwinder.add_object = (void (*)(const void *, void *))add;
        unwinder.remove_object = (void *(*)(const void *))remove;
        unwinder.find = (const void *(*)(void *, void *))exported(module, "_Unwind_Find_FDE");
    } else {
        add = exported(module, "__unw_add_dynamic_eh_frame_section");
        remove = exported(module, "__unw_remove_dynamic_eh_frame_section");
        if (!add || !remove)
            return;
        unwinder.llvm = true;
        unwinder.add_section = (void (*)(uint64_t))add;
        unwinder.remove_object = (void *(*)(const void *))remove;
        unwinder.find = NULL;
    }
    unwinder.module = module;
    unwinder.ready = ready;
    unwinder.initialiser = 0;
    if (ready)
        register_all();
    else
        wait_for(module);
}

void cs_frames_forget(const struct cs_module *module) {
    if (unwinder.module != module)
        return;
    unwinder.module = NULL;
    unwinder.ready = false;
    for (uint32_t i = 0; i < cs_module_count; i++)
        cs_modules[i].frames_registered = false;
}

uint64_t cs_loader_module_ready(void) {
    uint64_t signals = cs_system_block_signals(), initialiser = unwinder.initialiser;
    cs_lock(&cs_session.process->module_lock);
    if (unwinder.module && initialiser) {
        unwinder.ready = true;
        register_all();
    }
    cs_unlock(&cs_session.process->module_lock);
    cs_system_restore_signals(signals);
    return initialiser;
}

/* Following the loader: its lists of loaded images at start, and every change afterwards.
 *
 * The loader tells debuggers about changes by calling an empty function (r_debug.r_brk, <link.h>). A jump over it
 * brings every change here, on whatever thread made it, before the constructors of a new library run and after the
 * destructors of an old one. Nothing is interposed. */
#include <link.h>

#include "../core/memory.h"
#include "../core/system.h"
#include "../core/unwind.h"
#include "linux.h"
#include "syscall.h"

#define BATCH 64u /* modules asked about at a time: their questions and answers fit a socket's buffers */
#define STUB_PAGE 4096u
#define OWN_DESCRIPTOR "/proc/self/./" /* a library of ours that was handed over: recording/handing.py */

/* Lists of further namespaces (dlmopen) follow when the version is 2 or more: glibc 2.35's struct r_debug_extended. */
struct debug_list {
    struct r_debug debug;
    struct debug_list *next;
};

/* New modules of one look, with what is needed again once the recorder has answered. */
struct newcomer {
    struct cs_module *module;
    struct link_map *map;
    struct cs_image image;
    bool asked;
};

static struct debug_list *lists;
static uint64_t unloading_since; /* time of the loader's announcement that it will unload something, or 0 */
static bool started;
static struct newcomer newcomers[BATCH];

extern Elf64_Dyn own_dynamic[] __asm__("_DYNAMIC") __attribute__((visibility("hidden")));

/* The loader's lists, through the program's DT_DEBUG entry. */
static struct debug_list *find_lists(void) {
    const Elf64_Phdr *headers = (const Elf64_Phdr *)cs_launch.program_headers;
    uint64_t bias = 0;
    const Elf64_Dyn *dynamic = NULL;
    for (uint64_t i = 0; i < cs_launch.program_header_count; i++)
        if (headers[i].p_type == PT_PHDR)
            bias = (uint64_t)headers - headers[i].p_vaddr;
    for (uint64_t i = 0; i < cs_launch.program_header_count; i++)
        if (headers[i].p_type == PT_DYNAMIC)
            dynamic = (const Elf64_Dyn *)(bias + headers[i].p_vaddr);
    for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++)
        if (dynamic->d_tag == DT_DEBUG)
            return (struct debug_list *)dynamic->d_un.d_ptr;
    return NULL;
}

static struct debug_list *next_list(const struct debug_list *list) {
    return lists->debug.r_version >= 2 ? list->next : NULL;
}

static bool is_program(const struct link_map *map) {
    return map == lists->debug.r_map;
}

/* The absolute path of a module's file, as the loader found it; in a buffer that the next call reuses. */
static const char *module_path(const struct link_map *map) {
    static char path[4096];
    if (is_program(map))
        return cs_session.path;
    if (map->l_name && cs_text_after(map->l_name, OWN_DESCRIPTOR))
        return "[callscope]"; /* which means another file to everybody else */
    uint64_t at = 0;
    if (map->l_name && map->l_name[0] && map->l_name[0] != '/') {
        long bytes = cs_call3(SYS_getcwd, (long)path, sizeof path / 2, 0);
        at = cs_failed(bytes) || path[0] != '/' ? 0 : (uint64_t)bytes - 1;
        cs_text_append(path, sizeof path, &at, at > 1 ? "/" : "");
    }
    cs_text_append(path, sizeof path, &at, map->l_name ? map->l_name : "");
    return path;
}

static bool wanted(const struct link_map *map) {
    return map->l_ld != own_dynamic && (!map->l_addr || map->l_addr != cs_launch.vdso);
}

/* Enter a new module in the table; false when the table is full. */
static bool describe(struct newcomer *newcomer, struct link_map *map) {
    struct cs_module *module = cs_module_add();
    if (!module)
        return false;
    struct cs_image *image = &newcomer->image;
    bool known = is_program(map)
                     ? cs_image_from_headers(image, map->l_addr, (const Elf64_Phdr *)cs_launch.program_headers,
                                             cs_launch.program_header_count)
                     : cs_image_from_base(image, map->l_addr);
    if (!known)
        *image = (struct cs_image){.bias = map->l_addr, .base = map->l_addr};
    module->handle = map;
    module->bias = map->l_addr;
    module->dynamic = map->l_ld;
    module->base = image->base;
    module->span = image->span;
    module->flags = (is_program(map) ? CS_MODULE_MAIN : 0) | (cs_unwind_ready ? CS_MODULE_UNWIND : 0);
    module->build_id_bytes = image->build_id_bytes;
    memcpy(module->build_id, image->build_id, image->build_id_bytes);
    module->seen = true;
    newcomer->module = module;
    newcomer->map = map;
    /* The loader itself must stay as it is: it runs before thread-local storage does. */
    newcomer->asked = known && (image->base != lists->debug.r_ldbase || cs_unwind_ready);
    return true;
}

static void settle(struct newcomer *newcomer, struct cs_asker *asker) {
    static struct cs_reply reply;
    struct cs_module *module = newcomer->module;
    const char *path = module_path(newcomer->map), *reason = NULL;
    if (newcomer->asked && asker->socket >= 0) {
        if (!cs_ask_answer(asker, &reply)) {
            cs_note(CS_NOTE_NO_RECORDER, "the recorder does not answer: modules are not traced");
            cs_ask_end(asker);
        } else if (reply.status == CS_REPLY_PLAN)
            reason = cs_region_apply(module, &newcomer->image, &reply);
        if (asker->socket >= 0)
            cs_unwind_module(module, reply.unwind);
        cs_give_up(reply.plan);
        cs_give_up(reply.chosen);
    }
    if (reason)
        cs_note_module(CS_NOTE_NO_PLAN, reason, path);
    if (cs_attachment == CS_ATTACHMENT_PREPARES)
        return;
    cs_module_journal_load(module, path);
    cs_frames_look_at(module, !started);
    cs_frames_add(module);
}

static void settle_batch(uint32_t count) {
    struct cs_asker asker = {.socket = -1};
    uint32_t questions = 0;
    for (uint32_t i = 0; i < count; i++)
        questions += newcomers[i].asked;
    if (questions && !cs_ask_begin(&asker, questions))
        cs_note(CS_NOTE_NO_RECORDER, "the recorder cannot be reached: modules are not traced");
    for (uint32_t i = 0; i < count; i++)
        if (newcomers[i].asked && !cs_ask(&asker, newcomers[i].module, module_path(newcomers[i].map)))
            cs_ask_end(&asker);
    for (uint32_t i = 0; i < count; i++)
        settle(&newcomers[i], &asker);
    cs_ask_end(&asker);
}

static void remove_unseen(void) {
    for (uint32_t i = 0; i < cs_module_count; i++) {
        struct cs_module *module = &cs_modules[i];
        if (!module->handle || module->seen)
            continue;
        cs_module_journal_unload(module, unloading_since ? unloading_since : cs_tsc());
        cs_frames_remove(module);
        cs_frames_forget(module);
        cs_unwind_remove(module->base, (uint64_t)module->region);
        cs_region_release(module);
        module->handle = NULL;
    }
    unloading_since = 0;
}

/* Compare the loader's lists with the table. */
static void look(void) {
    for (uint32_t i = 0; i < cs_module_count; i++)
        cs_modules[i].seen = false;
    for (struct debug_list *list = lists; list; list = next_list(list))
        for (struct link_map *map = list->debug.r_map; map; map = map->l_next) {
            struct cs_module *module = cs_module_find(map, map->l_addr);
            if (module && module->dynamic == map->l_ld)
                module->seen = true;
        }
    remove_unseen();
    uint32_t count = 0;
    for (struct debug_list *list = lists; list; list = next_list(list))
        for (struct link_map *map = list->debug.r_map; map; map = map->l_next) {
            if (!wanted(map) || cs_module_find(map, map->l_addr) || !describe(&newcomers[count], map))
                continue;
            if (++count == BATCH) {
                settle_batch(count);
                count = 0;
            }
        }
    settle_batch(count);
}

void cs_loader_update(void) {
    /* No events: the session has ended. Muted: the agent's own call out brought us here. */
    if (!started || !cs_session.events || cs_self()->muted || cs_process_ignored())
        return;
    uint64_t signals = cs_system_block_signals();
    /* A vfork child shares everything with its parent, but not its number; it has no business with the loader. */
    cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    cs_lock(&cs_session.process->module_lock);
    bool consistent = true;
    for (struct debug_list *list = lists; list; list = next_list(list)) {
        if (list->debug.r_state == RT_DELETE && !unloading_since)
            unloading_since = cs_tsc();
        consistent &= list->debug.r_state == RT_CONSISTENT;
    }
    if (consistent)
        look();
    cs_unlock(&cs_session.process->module_lock);
    cs_system_restore_signals(signals);
}

/* Whether five bytes of an empty function may be overwritten: endbr64 and ret, or ret and padding up to the next. */
static bool is_empty_function(const uint8_t *code) {
    static const uint8_t marked[] = {0xf3, 0x0f, 0x1e, 0xfa, 0xc3};
    static const char *const paddings[] = {
        "\x66\x66\x2e\x0f", "\x66\x2e\x0f\x1f", "\x66\x66\x66\x2e", "\x0f\x1f\x44",     "\x0f\x1f\x80",
        "\x0f\x1f\x84",     "\x0f\x1f\x40",     "\x66\x0f\x1f\x44", "\x90\x90\x90\x90", "\xcc\xcc\xcc\xcc"};
    if (!memcmp(code, marked, sizeof marked))
        return true;
    for (uint64_t i = 0; code[0] == 0xc3 && i < sizeof paddings / sizeof *paddings; i++)
        if (!memcmp(code + 1, paddings[i], cs_text_length(paddings[i])))
            return true;
    return false;
}

/* What the hook overwrote. */
static uint8_t unhooked[5];

/* Lead the loader's empty function here through a jump within its reach. */
static bool hook(void) {
    static uint8_t *stub;
    uint8_t *code = (uint8_t *)lists->debug.r_brk;
    if (!code || !is_empty_function(code))
        return false;
    uint64_t page = (uint64_t)code & ~4095ull, bytes = (((uint64_t)code + 5 + 4095) & ~4095ull) - page;
    if (!stub)
        stub = cs_map_near(page, page + bytes, STUB_PAGE, PROT_READ | PROT_WRITE);
    if (!stub || cs_failed(cs_call3(SYS_mprotect, (long)stub, STUB_PAGE, PROT_READ | PROT_WRITE)))
        return false;
    uint8_t jump[14] = {0xff, 0x25}; /* jmp [rip], then the address */
    uint64_t target = (uint64_t)cs_loader_changed;
    memcpy(jump + 6, &target, sizeof target);
    memcpy(stub, jump, sizeof jump);
    int32_t displacement = (int32_t)(stub - (code + 5));
    if (cs_failed(cs_call3(SYS_mprotect, (long)stub, STUB_PAGE, PROT_READ | PROT_EXEC)) ||
        cs_failed(cs_call3(SYS_mprotect, (long)page, (long)bytes, PROT_READ | PROT_WRITE | PROT_EXEC)))
        return false;
    memcpy(unhooked, code, sizeof unhooked);
    memcpy(code + 1, &displacement, sizeof displacement);
    code[0] = 0xe9;
    cs_call3(SYS_mprotect, (long)page, (long)bytes, PROT_READ | PROT_EXEC);
    return true;
}

/* Give the loader its function back. */
static void unhook(void) {
    uint8_t *code = (uint8_t *)lists->debug.r_brk;
    uint64_t page = (uint64_t)code & ~4095ull, bytes = (((uint64_t)code + 5 + 4095) & ~4095ull) - page;
    if (cs_failed(cs_call3(SYS_mprotect, (long)page, (long)bytes, PROT_READ | PROT_WRITE | PROT_EXEC)))
        return;
    memcpy(code, unhooked, sizeof unhooked);
    cs_call3(SYS_mprotect, (long)page, (long)bytes, PROT_READ | PROT_EXEC);
    started = false;
}

uint64_t cs_loader_next_symbol(const char *name) {
    const struct debug_list *list = lists ? lists : find_lists();
    bool behind = false;
    uint64_t found = 0;
    for (const struct link_map *map = list ? list->debug.r_map : NULL; map && !found; map = map->l_next) {
        if (behind && map->l_ld)
            found = cs_image_symbol(map->l_addr, map->l_ld, name);
        behind |= map->l_ld == own_dynamic;
    }
    return found;
}

/* Ask for the unwind tables of modules that are there already, from number `first` on. */
static void ask_tables(uint32_t first, uint32_t count) {
    static struct cs_reply reply;
    struct cs_asker asker;
    uint32_t asked = 0;
    if (!cs_ask_begin(&asker, count))
        return;
    for (uint32_t i = 0; i < count; i++) {
        struct cs_module *module = &cs_modules[first + i];
        module->flags |= CS_MODULE_UNWIND;
        if (module->handle)
            asked += cs_ask(&asker, module, module_path(module->handle));
    }
    for (uint32_t i = 0; i < count && asked; i++)
        if (cs_modules[first + i].handle && cs_ask_answer(&asker, &reply))
            cs_unwind_module(&cs_modules[first + i], reply.unwind);
    cs_ask_end(&asker);
}

/* The images that are never traced, but run: the agent and the kernel's code. They are recorded as modules now. */
static void add_untraced(uint64_t base, const char *path) {
    static struct cs_module module;
    static struct cs_reply reply;
    struct cs_image image;
    struct cs_asker asker;
    if (!base || !cs_image_from_base(&image, base))
        return;
    memset(&module, 0, sizeof module);
    module.base = image.base;
    module.span = image.span;
    module.flags = CS_MODULE_UNWIND;
    module.build_id_bytes = image.build_id_bytes;
    memcpy(module.build_id, image.build_id, image.build_id_bytes);
    cs_module_journal_load(&module, path);
    if (cs_ask_begin(&asker, 1) && cs_ask(&asker, &module, path) && cs_ask_answer(&asker, &reply))
        cs_unwind_module(&module, reply.unwind);
    cs_ask_end(&asker);
}

static void add_all_untraced(void) {
    for (const struct link_map *map = lists->debug.r_map; map; map = map->l_next)
        if (map->l_ld == own_dynamic)
            add_untraced(map->l_addr, module_path(map));
    add_untraced(cs_launch.vdso, "[vdso]");
}

void cs_unwind_start(void) {
    uint64_t signals = cs_system_block_signals();
    cs_lock(&cs_session.process->module_lock);
    if (!cs_unwind_ready && lists) {
        for (uint32_t first = 0; first < cs_module_count; first += BATCH)
            ask_tables(first, cs_module_count - first < BATCH ? cs_module_count - first : BATCH);
        add_all_untraced();
    }
    cs_unwind_ready = true;
    cs_unlock(&cs_session.process->module_lock);
    cs_system_restore_signals(signals);
}

const char *cs_loader_own_path(void) {
    const struct debug_list *list = find_lists();
    for (const struct link_map *map = list ? list->debug.r_map : NULL; map; map = map->l_next)
        if (map->l_ld == own_dynamic)
            return map->l_name;
    return NULL;
}

void cs_loader_start(void) {
    uint64_t signals = cs_system_block_signals();
    lists = find_lists();
    if (lists) {
        cs_lock(&cs_session.process->module_lock);
        look();
        if (cs_unwind_ready)
            add_all_untraced();
        cs_unlock(&cs_session.process->module_lock);
        if (cs_attachment != CS_ATTACHMENT_PREPARES)
            started = started || hook();
    }
    if (!started && cs_attachment != CS_ATTACHMENT_PREPARES)
        cs_note(CS_NOTE_NO_LOADER_HOOK, "modules loaded later stay unknown: the loader cannot be watched");
    cs_system_restore_signals(signals);
}

bool cs_loader_busy(void) {
    lists = find_lists();
    for (struct debug_list *list = lists; list; list = next_list(list))
        if (list->debug.r_state != RT_CONSISTENT)
            return true;
    return false;
}

void cs_loader_look(void) {
    cs_lock(&cs_session.process->module_lock);
    if (!cs_loader_busy())
        look();
    cs_unlock(&cs_session.process->module_lock);
}

/* Whether the table holds the modules that are there, and no others. */
static bool is_current(void) {
    uint32_t listed = 0, known = 0;
    if (cs_loader_busy())
        return false;
    for (struct debug_list *list = lists; list; list = next_list(list))
        for (struct link_map *map = list->debug.r_map; map; map = map->l_next) {
            const struct cs_module *module = wanted(map) ? cs_module_find(map, map->l_addr) : NULL;
            if (wanted(map) && (!module || module->dynamic != map->l_ld))
                return false;
            listed += wanted(map);
        }
    for (uint32_t i = 0; i < cs_module_count; i++)
        known += cs_modules[i].handle != NULL;
    return listed == known;
}

bool cs_loader_commit(void) {
    if (!lists || !is_current())
        return false;
    for (uint32_t i = 0; i < cs_module_count; i++) {
        struct cs_module *module = &cs_modules[i];
        if (!module->handle)
            continue;
        const char *reason = cs_region_commit(module), *path = module_path(module->handle);
        if (reason)
            cs_note_module(CS_NOTE_NO_PLAN, reason, path);
        cs_module_journal_load(module, path);
    }
    started = hook();
    return true;
}

void cs_loader_settle(void) {
    cs_lock(&cs_session.process->module_lock);
    for (uint32_t i = 0; i < cs_module_count; i++) {
        struct cs_module *module = &cs_modules[i];
        if (!module->handle)
            continue;
        cs_region_close(module);
        cs_frames_look_at(module, true);
        cs_frames_add(module);
    }
    if (!started)
        cs_note(CS_NOTE_NO_LOADER_HOOK, "modules loaded later stay unknown: the loader cannot be watched");
    cs_unlock(&cs_session.process->module_lock);
}

void cs_loader_open(void) {
    cs_lock(&cs_session.process->module_lock);
    cs_regions_switch(true);
    for (uint32_t i = 0; i < cs_module_count; i++)
        cs_region_open(&cs_modules[i]);
    cs_unlock(&cs_session.process->module_lock);
}

void cs_loader_revert(void) {
    for (uint32_t i = 0; i < cs_module_count; i++)
        cs_region_revert(&cs_modules[i]);
    if (started)
        unhook();
}

void cs_loader_close(bool release) {
    for (uint32_t i = 0; i < cs_module_count; i++) {
        struct cs_module *module = &cs_modules[i];
        if (!module->handle)
            continue;
        cs_region_close(module);
        cs_frames_remove(module);
        if (!release)
            module->region = NULL; /* it stays for whoever is in it */
        cs_region_release(module);
    }
    for (uint32_t i = 0; i < cs_module_count; i++)
        cs_frames_forget(&cs_modules[i]);
    memset(cs_modules, 0, cs_module_count * sizeof *cs_modules);
    cs_module_count = 0;
}

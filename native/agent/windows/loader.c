/* Following the loader: the modules there are at start, and its notices of those that come and go. It gives them with
 * its lock held, before a module's initialisation and after its last code has run. */
#include "../core/memory.h"
#include "../core/system.h"
#include "../core/unwind.h"
#include "windows_agent.h"

extern IMAGE_DOS_HEADER __ImageBase;

/* New modules of one look, with what is needed again once the recorder has answered. */
struct newcomer {
    struct cs_module *module;
    struct cs_image image;
    bool asked;
    char path[CS_PATH_BYTES];
};

static struct newcomer newcomers[CS_ASK_LIMIT];
static uint32_t newcomer_count;

static void settle(struct newcomer *newcomer, bool answered) {
    static struct cs_reply reply;
    const char *reason = NULL;
    reply.unwind[0] = 0;
    if (answered && newcomer->asked) {
        if (!cs_ask_answer(&reply))
            cs_note(CS_NOTE_NO_RECORDER, "the recorder does not answer: modules are not traced");
        else if (reply.status == CS_REPLY_PLAN)
            reason = cs_region_apply(newcomer->module, &newcomer->image, &reply);
        else if (reply.status == CS_REPLY_UNPACK)
            reason = cs_unpack_wait(newcomer->module, &newcomer->image, newcomer->path, reply.plan);
        cs_unwind_module(newcomer->module, reply.unwind);
    }
    if (reason)
        cs_note_module(CS_NOTE_NO_PLAN, reason, newcomer->path);
    cs_module_journal_load(newcomer->module, newcomer->path);
}

static void settle_all(void) {
    bool asked = false, answered = false;
    if (cs_ask_begin()) {
        for (uint32_t i = 0; i < newcomer_count; i++)
            asked |= newcomers[i].asked = newcomers[i].asked && cs_ask_add(newcomers[i].module, newcomers[i].path);
        answered = asked && cs_ask_send();
        if (asked && !answered)
            cs_note(CS_NOTE_NO_RECORDER, "the recorder does not answer: modules are not traced");
    }
    for (uint32_t i = 0; i < newcomer_count; i++)
        settle(&newcomers[i], answered);
    cs_ask_end();
    newcomer_count = 0;
}

static void read_image(struct newcomer *newcomer) {
    struct cs_module *module = newcomer->module;
    newcomer->asked = cs_image_read(&newcomer->image, (uint8_t *)module->base, module->span);
    if (!newcomer->asked)
        return;
    module->build_id_bytes = CS_IMAGE_ID_BYTES;
    memcpy(module->build_id, newcomer->image.id, CS_IMAGE_ID_BYTES);
    cs_api_offer(&newcomer->image, true);
}

/* Enter a module in the table, to be settled with the next. */
static void enter(uint8_t *base, uint64_t span, const UNICODE_STRING *path, uint32_t flags) {
    bool own = base == (uint8_t *)&__ImageBase; /* threads are found in it when they are stopped */
    if ((own && !cs_unwind_ready) || cs_module_find(base, (uint64_t)base))
        return;
    struct cs_module *module = cs_module_add();
    if (!module)
        return;
    if (newcomer_count == CS_ASK_LIMIT)
        settle_all();
    struct newcomer *newcomer = &newcomers[newcomer_count++];
    newcomer->module = module;
    cs_path_of(path, newcomer->path, sizeof newcomer->path);
    module->handle = base;
    module->bias = module->base = (uint64_t)base;
    module->span = span;
    module->flags = flags | (cs_unwind_ready ? CS_MODULE_UNWIND : 0);
    read_image(newcomer);
    module->span = newcomer->image.span;
}

void cs_loader_renew(struct cs_module *module, const char *path) {
    struct newcomer *newcomer = &newcomers[newcomer_count++];
    uint64_t at = 0;
    cs_module_journal_unload(module, cs_tsc());
    newcomer->module = module;
    cs_text_append(newcomer->path, sizeof newcomer->path, &at, path);
    read_image(newcomer);
    module->flags |= CS_MODULE_UNPACKED;
    cs_start_options.flags |= CS_START_ATTACHED; /* other threads may run */
    settle_all();
    cs_start_options.flags &= ~CS_START_ATTACHED;
}

static void leave(const uint8_t *base) {
    struct cs_module *module = cs_module_find(base, (uint64_t)base);
    if (!module)
        return;
    cs_module_journal_unload(module, cs_tsc());
    cs_unwind_remove(module->base, (uint64_t)module->region);
    cs_region_release(module);
    module->handle = NULL;
}

/* Ask for the unwind tables of the modules that were added to the question. */
static void ask_tables(struct cs_module **modules, uint32_t count) {
    static struct cs_reply reply;
    if (count && cs_ask_send())
        for (uint32_t i = 0; i < count && cs_ask_answer(&reply); i++)
            cs_unwind_module(modules[i], reply.unwind);
    cs_ask_end();
}

void cs_unwind_start(void) {
    static struct cs_module *asked[CS_ASK_LIMIT];
    static char path[CS_PATH_BYTES];
    ULONG_PTR cookie = 0;
    uint32_t count = 0;
    const struct cs_loader_data *data = (const struct cs_loader_data *)NtCurrentTeb()->ProcessEnvironmentBlock->Ldr;
    LdrLockLoaderLock(0, NULL, &cookie);
    cs_mute();
    cs_lock(&cs_session.process->module_lock);
    bool open = !cs_unwind_ready && cs_ask_begin();
    for (const LIST_ENTRY *entry = data->modules.Flink; open && entry != &data->modules; entry = entry->Flink) {
        const struct cs_loaded *loaded = (const struct cs_loaded *)entry;
        struct cs_module *module = cs_module_find(loaded->base, (uint64_t)loaded->base);
        if (!module)
            continue;
        module->flags |= CS_MODULE_UNWIND;
        cs_path_of(&loaded->path, path, sizeof path);
        if (cs_ask_add(module, path))
            asked[count++] = module;
        if (count == CS_ASK_LIMIT) {
            ask_tables(asked, count);
            count = 0;
            open = cs_ask_begin();
        }
    }
    if (open)
        ask_tables(asked, count);
    cs_unwind_ready = true;
    cs_unlock(&cs_session.process->module_lock);
    cs_unmute();
    LdrUnlockLoaderLock(0, cookie);
}

static VOID CALLBACK notified(ULONG reason, const struct cs_loader_notice *notice, void *context) {
    (void)context;
    if (cs_detached)
        return;
    cs_mute();
    cs_lock(&cs_session.process->module_lock);
    if (reason == CS_NOTICE_LOADED) {
        enter(notice->base, notice->span, notice->path, 0);
        settle_all();
    } else if (reason == CS_NOTICE_UNLOADED)
        leave(notice->base);
    cs_unlock(&cs_session.process->module_lock);
    cs_unmute();
}

void cs_loader_forget(void) {
    struct cs_image image;
    for (uint32_t i = 0; i < cs_module_count; i++)
        if (cs_modules[i].handle && cs_image_read(&image, (uint8_t *)cs_modules[i].base, cs_modules[i].span))
            cs_api_offer(&image, false);
    cs_module_count = 0;
}

void cs_loader_start(void) {
    ULONG_PTR cookie = 0;
    static void *registration;
    const struct cs_loader_data *data = (const struct cs_loader_data *)NtCurrentTeb()->ProcessEnvironmentBlock->Ldr;
    LdrLockLoaderLock(0, NULL, &cookie);
    cs_lock(&cs_session.process->module_lock);
    if (!registration && LdrRegisterDllNotification(0, notified, NULL, &registration))
        cs_note(CS_NOTE_NO_LOADER_HOOK, "modules loaded later stay unknown: the loader cannot be watched");
    for (const LIST_ENTRY *entry = data->modules.Flink; entry != &data->modules; entry = entry->Flink) {
        const struct cs_loaded *loaded = (const struct cs_loaded *)entry;
        enter(loaded->base, loaded->span, &loaded->path, entry == data->modules.Flink ? CS_MODULE_MAIN : 0);
    }
    settle_all();
    cs_unlock(&cs_session.process->module_lock);
    LdrUnlockLoaderLock(0, cookie);
}

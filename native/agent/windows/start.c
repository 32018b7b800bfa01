/* The start and the end of the agent in a process. */
#include "../core/memory.h"
#include "../core/system.h"
#include "../core/unwind.h"
#include "windows_agent.h"

#define THREAD_LIMIT 8191u /* at a time */
/* Where the session's files lie: far from everything, for trampolines need the space near modules. */
#define EVENTS_ADDRESS 0x400000000000ull
#define JOURNAL_ADDRESS 0x3ff000000000ull
/* Each session after a detachment has its own addresses: threads may still be about to write to an older one. */
#define EVENTS_STRIDE 0x20000000000ull
#define JOURNAL_STRIDE 0x100000000ull
#define PLACES 8u
#define UNBOUND 0x7fffffff /* what entry.S has where the slots' place belongs */
/* Vector and floating point registers: x87, SSE, AVX, AVX-512 (Intel SDM volume 1, 13.1). */
#define XSAVE_STATES 0xe7u

struct cs_start cs_start_options;
bool cs_detached;
uint32_t cs_xsave_mask;

enum cs_outcome { STARTED, ALREADY_STARTED, NO_SLOTS, OLD_PROCESSOR, NO_SESSION };

extern const int32_t cs_thread_places[], cs_thread_places_end[];
extern uint8_t cs_routines_text[], cs_routines_text_end[];

/* Write where threads' data lies into the routines of the set that is used. */
static bool bind_routines(void) {
    void *first = cs_routines_text;
    SIZE_T bytes = (SIZE_T)(cs_routines_text_end - cs_routines_text);
    ULONG old;
    if (NtProtectVirtualMemory(CS_SELF, &first, &bytes, PAGE_READWRITE, &old))
        return false;
    bool bound = true;
    for (const int32_t *place = cs_thread_places; place < cs_thread_places_end; place++) {
        uint8_t *displacement = (uint8_t *)place + *place;
        uint32_t now;
        memcpy(&now, displacement, sizeof now);
        bound &= now == UNBOUND;
        memcpy(displacement, &cs_slots_offset, sizeof cs_slots_offset);
    }
    return !NtProtectVirtualMemory(CS_SELF, &first, &bytes, PAGE_EXECUTE_READ, &old) && bound;
}

static bool find_vector_states(void) {
    uint32_t a = 1, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (!(c >> 27 & 1)) /* OSXSAVE */
        return false;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    cs_xsave_mask = a & XSAVE_STATES;
    return true;
}

/* Split a command line into NUL-separated arguments, as the C runtime does (Microsoft, "Parsing C command-line
 * arguments"), less its rule for doubled quotes. */
static uint32_t split_command(char *text) {
    char *in = text, *out = text;
    bool quoted = false;
    while (*in) {
        uint32_t slashes = 0;
        while (*in == '\\')
            slashes++, in++;
        uint32_t kept = *in == '"' ? slashes / 2 : slashes;
        while (kept--)
            *out++ = '\\';
        if (*in == '"' && slashes % 2)
            *out++ = *in++;
        else if (*in == '"') {
            quoted = !quoted;
            in++;
        } else if ((*in == ' ' || *in == '\t') && !quoted) {
            while (*in == ' ' || *in == '\t')
                in++;
            if (*in)
                *out++ = 0;
        } else if (*in)
            *out++ = *in++;
    }
    *out++ = 0;
    return (uint32_t)(out - text);
}

static void describe_program(void) {
    const RTL_USER_PROCESS_PARAMETERS *parameters = NtCurrentTeb()->ProcessEnvironmentBlock->ProcessParameters;
    cs_path_of(&parameters->ImagePathName, cs_session.path, sizeof cs_session.path);
    cs_session.path_bytes = (uint32_t)cs_text_length(cs_session.path);
    cs_text_of(&parameters->CommandLine, cs_session.command, sizeof cs_session.command);
    cs_session.command_bytes = split_command(cs_session.command);
}

/* Of another session than before, all threads find their blocks empty, as in a child of fork. */
static bool prepare_blocks(void) {
    uint64_t bytes = (THREAD_LIMIT + 1ull) * sizeof(struct cs_block);
    uint8_t *memory = cs_session.process ? (uint8_t *)cs_session.process : cs_system_memory(bytes);
    if (cs_session.process)
        memset(memory, 0, bytes);
    cs_session.last_process = cs_session.highest_block = cs_session.notes_given = 0;
    _Static_assert(sizeof(struct cs_process) <= sizeof(struct cs_block), "the facts take the first block's place");
    cs_session.process = (struct cs_process *)memory;
    cs_session.blocks = (struct cs_block *)memory + 1;
    cs_session.block_limit = THREAD_LIMIT;
    return memory;
}

static bool open_session(void) {
    static struct {
        struct cs_shared_file events, journal;
    } earlier[PLACES];
    static uint32_t place;
    uint64_t events_bytes, journal_bytes;
    if (cs_session.events) {
        earlier[place].events = cs_session.events_file;
        earlier[place].journal = cs_session.journal_file;
        cs_session_files_close();
        place = (place + 1) % PLACES;
        cs_session_file_unmap(&earlier[place].events);
        cs_session_file_unmap(&earlier[place].journal);
    }
    uint64_t events = EVENTS_ADDRESS + place * EVENTS_STRIDE, journal = JOURNAL_ADDRESS + place * JOURNAL_STRIDE;
    memset(&cs_session.events_file, 0, sizeof cs_session.events_file);
    memset(&cs_session.journal_file, 0, sizeof cs_session.journal_file);
    if (cs_session_file("/events", events, &events_bytes) && cs_session_file("/journal", journal, &journal_bytes) &&
        prepare_blocks() && cs_session_open((uint8_t *)events, events_bytes, (uint8_t *)journal, journal_bytes))
        return true;
    cs_session_files_close();
    cs_session.events = NULL;
    return false;
}

static uint32_t started;

/* Called by what was injected (inject.h) when the loader has initialised the program's libraries. */
__declspec(dllexport) DWORD callscope_attach(const struct cs_start *options) {
    if (__atomic_exchange_n(&started, 1, __ATOMIC_ACQ_REL))
        return ALREADY_STARTED;
    cs_start_options = *options;
    if (!find_vector_states())
        return OLD_PROCESSOR;
    if (!cs_session.process && (!cs_slots_take() || !bind_routines()))
        return NO_SLOTS;
    if (!open_session())
        return NO_SESSION;
    cs_detached = false;
    cs_mute(); /* the agent's own calls are none of the program's */
    describe_program();
    cs_session.namespace_id = 1; /* process ids are the system's */
    cs_process_enter(CS_CAUSE_LAUNCH, cs_journal_find(cs_system_parent_pid(), 0));
    cs_unwind_ready = cs_session.features & CS_FEATURE_STACKS;
    cs_switch_begin();
    cs_loader_start();
    cs_crash_watch();
    cs_start_options.flags &= ~CS_START_ATTACHED; /* what is loaded later does not run yet */
    if (cs_start_options.flags & CS_START_FOLLOW)
        cs_children_follow();
    cs_unmute();
    if (cs_sampling_wanted())
        cs_thread_block();
    return STARTED;
}

/* Record no more, until the next start. */
__declspec(dllexport) DWORD callscope_detach(void) {
    if (!started || !cs_session.events || cs_detached)
        return NO_SESSION;
    cs_lock(&cs_session.process->module_lock);
    cs_detached = true;
    cs_regions_off();
    cs_loader_forget();
    cs_unlock(&cs_session.process->module_lock);
    __atomic_store_n(&started, 0, __ATOMIC_RELEASE);
    return STARTED;
}

/* `reserved`: the process ends; its other threads are gone already, and may have held locks. */
BOOL WINAPI DllMainCRTStartup(HINSTANCE library, DWORD reason, void *reserved) {
    if (reason == DLL_PROCESS_ATTACH)
        LdrAddRefDll(1 /* never to be unloaded */, library);
    if (!cs_session.events || cs_detached || cs_session.process->state != 2)
        return TRUE;
    if (reason == DLL_THREAD_ATTACH && cs_sampling_wanted())
        cs_thread_block();
    struct cs_block *own = cs_self()->paused ? cs_self()->left : cs_self()->block;
    bool ends = reason == DLL_THREAD_DETACH || reason == DLL_PROCESS_DETACH;
    if (ends && own->used) {
        cs_mute();
        cs_thread_follow_name(own);
        cs_unmute();
    }
    if (reason != DLL_PROCESS_DETACH || !reserved)
        return TRUE;
    cs_session.process->block_lock = 0;
    cs_threads_reap(THREAD_LIMIT);
    cs_mute();
    cs_ending_exit();
    cs_unmute();
    if (own->used)
        cs_events_settle(own);
    cs_journal_write(CS_JOURNAL_PROCESS_END, cs_tsc(), own->used ? own : NULL, NULL, 0);
    cs_journal_forget(cs_session.process->pid);
    return TRUE;
}

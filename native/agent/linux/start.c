/* The start and the end: the constructor runs before every other library's, so before the program has a chance to
 * change anything and before the C library is ready; all it uses is what the kernel put on the stack. */
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "../core/memory.h"
#include "../core/system.h"
#include "../core/unwind.h"
#include "crash.h"
#include "linux.h"
#include "syscall.h"

#define THREAD_LIMIT 8191u /* at a time */
#define SMALLEST_MAPPING 0x4000000ull
/* Files of this size would fill the space near the libraries, where trampolines must lie. This is far from everything,
 * the shadow memory of sanitizers included. */
#define EVENTS_ADDRESS 0x400000000000ull
#define JOURNAL_ADDRESS 0x3ff000000000ull

struct cs_launch cs_launch;

const char *cs_environment(char **environment, const char *name) {
    for (; *environment; environment++) {
        const char *value = cs_text_after(*environment, name);
        if (value && *value == '=')
            return value + 1;
    }
    return NULL;
}

static void read_auxiliary_vector(const Elf64_auxv_t *entry) {
    for (; entry->a_type != AT_NULL; entry++) {
        if (entry->a_type == AT_PHDR)
            cs_launch.program_headers = entry->a_un.a_val;
        else if (entry->a_type == AT_PHNUM)
            cs_launch.program_header_count = entry->a_un.a_val;
        else if (entry->a_type == AT_SYSINFO_EHDR)
            cs_launch.vdso = entry->a_un.a_val;
    }
}

/* Drop the entries of a LD_PRELOAD list that end in `name`; the rest moves up. */
static void drop_entries(char *list, const char *name) {
    char *out = list;
    uint64_t name_bytes = cs_text_length(name);
    for (const char *entry = list; *entry;) {
        uint64_t bytes = 0;
        while (entry[bytes] && entry[bytes] != ':' && entry[bytes] != ' ')
            bytes++;
        bool ours = bytes >= name_bytes && !memcmp(entry + bytes - name_bytes, name, name_bytes);
        if (bytes && !ours) {
            if (out > list)
                *out++ = ':';
            memmove(out, entry, bytes);
            out += bytes;
        }
        entry += bytes + (entry[bytes] != 0);
    }
    *out = 0;
}

/* Children are to be left alone: take what starts us from the environment they inherit, in place. */
static void forget_environment(char **environment) {
    char **out = environment;
    for (; *environment; environment++) {
        char *list = (char *)cs_text_after(*environment, "LD_PRELOAD=");
        if (list)
            drop_entries(list, "/libcallscope-agent.so"), drop_entries(list, "/libcalltrace.so"),
                drop_entries(list, "/libcallscope-python.so");
        if ((list && !*list) || cs_text_after(*environment, "CALLSCOPE_"))
            continue;
        *out++ = *environment;
    }
    while (out < environment)
        *out++ = NULL;
}

/* The bytes of a file, at most `bytes`. */
static uint64_t read_file(const char *path, void *to, uint64_t bytes) {
    int descriptor = cs_open(path, O_RDONLY);
    long got = descriptor < 0 ? 0 : cs_call3(SYS_read, descriptor, (long)to, (long)bytes);
    if (descriptor >= 0)
        cs_close(descriptor);
    return cs_failed(got) ? 0 : (uint64_t)got;
}

static void describe_program(int argument_count, char **arguments) {
    struct cs_session *session = &cs_session;
    long bytes = -ENOENT;
    if (!cs_launch.path)
        bytes = cs_call3(SYS_readlink, (long)"/proc/self/exe", (long)session->path, sizeof session->path - 1);
    if (cs_failed(bytes)) {
        uint64_t at = 0;
        const char *path = cs_launch.path ? cs_launch.path : argument_count ? arguments[0] : "";
        cs_text_append(session->path, sizeof session->path, &at, path);
        bytes = (long)at;
    }
    session->path_bytes = (uint32_t)bytes;
    uint64_t at = 0;
    for (int i = 0; i < argument_count && at + 2 < sizeof session->command; i++, at++)
        cs_text_append(session->command, sizeof session->command - 1, &at, arguments[i]);
    if (!arguments)
        at = read_file("/proc/self/cmdline", session->command, sizeof session->command - 1);
    session->command_bytes = (uint32_t)at;
}

/* Map a file of the session shared, closed to reading and writing. Less than the whole file when the program's address
 * space is limited: most of that is the program's. */
static uint8_t *map_session_file(const char *directory, const char *name, uint64_t address, uint64_t *bytes) {
    char path[4096];
    uint64_t at = 0;
    if (!cs_text_append(path, sizeof path, &at, directory) || !cs_text_append(path, sizeof path, &at, name))
        return NULL;
    int descriptor = cs_open(path, O_RDWR);
    if (descriptor < 0)
        return NULL;
    uint64_t size = cs_file_bytes(descriptor) & ~4095ull, share = size;
    struct rlimit64 limit;
    if (!cs_failed(cs_call4(SYS_prlimit64, 0, RLIMIT_AS, 0, (long)&limit)) && limit.rlim_cur != RLIM64_INFINITY)
        share = limit.rlim_cur / 8 & ~(SMALLEST_MAPPING - 1);
    if (share > size)
        share = size;
    uint8_t *base = NULL;
    for (; share >= SMALLEST_MAPPING || share == size; share /= 2)
        if ((base = cs_map((void *)address, share, PROT_NONE, MAP_SHARED | MAP_NORESERVE, descriptor, 0)))
            break;
    cs_close(descriptor);
    if (base)
        cs_call3(SYS_madvise, (long)base, (long)share, MADV_DONTDUMP);
    *bytes = share;
    return base;
}

/* A store into a file of the session found no page: the disk is full in a way that asking for memory ahead did not show
 * (old kernels, file systems that copy on write), or somebody cut the file. What is written there is lost then. */
bool cs_files_mend(uint64_t address) {
    const struct cs_shared_file *files[] = {&cs_session.events_file, &cs_session.journal_file};
    for (int i = 0; i < 2; i++) {
        if (address - (uint64_t)files[i]->base >= files[i]->bytes)
            continue;
        cs_session.torn = true;
        return cs_map((void *)(address & ~4095ull), 4096, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    return false;
}

/* The pages that a child of fork gets zeroed: the process's facts, then the blocks of threads. */
static bool prepare_blocks(void) {
    if (cs_session.blocks)
        return true;
    uint64_t bytes = (THREAD_LIMIT + 1ull) * sizeof(struct cs_block);
    uint8_t *memory = cs_system_memory(bytes);
    if (!memory || cs_failed(cs_call3(SYS_madvise, (long)memory, (long)bytes, MADV_WIPEONFORK)))
        return false;
    _Static_assert(sizeof(struct cs_process) <= sizeof(struct cs_block), "the facts take the first block's place");
    cs_session.process = (struct cs_process *)memory;
    cs_session.blocks = (struct cs_block *)memory + 1;
    cs_session.block_limit = THREAD_LIMIT;
    return true;
}

/* Bounds in entry.S: places of 32-bit displacements, each from its own place; and the pages these are in. */
#define HIDDEN __attribute__((visibility("hidden")))
extern const int32_t cs_thread_places[] HIDDEN, cs_thread_places_end[] HIDDEN;
extern uint8_t cs_routines_text[] HIDDEN, cs_routines_text_end[] HIDDEN;

/* Write where the thread's data lies, from the thread pointer, into the routines. */
static bool bind_routines(void) {
    static bool bound; /* threads may be in the routines that an earlier session left */
    int32_t offset = (int32_t)cs_system_thread_place();
    if (bound)
        return true;
    long first = (long)cs_routines_text, bytes = (long)cs_routines_text_end - first;
    if (cs_failed(cs_call3(SYS_mprotect, first, bytes, PROT_READ | PROT_WRITE)))
        return false;
    for (const int32_t *place = cs_thread_places; place < cs_thread_places_end; place++)
        memcpy((uint8_t *)place + *place, &offset, sizeof offset);
    bound = !cs_failed(cs_call3(SYS_mprotect, first, bytes, PROT_READ | PROT_EXEC));
    return bound;
}

static uint64_t namespace_id(void) {
    struct stat status;
    return cs_failed(cs_call4(SYS_newfstatat, AT_FDCWD, (long)"/proc/self/ns/pid", (long)&status, 0)) ? 0
                                                                                                      : status.st_ino;
}

/* What this process was before: the image that called exec, or a child of a process of the session. */
static void enter_process(void) {
    uint32_t pid = cs_system_pid();
    uint32_t before = cs_journal_find(pid, 0);
    if (before)
        before = cs_journal_find(pid, cs_system_birth_ns());
    if (before && cs_session.features & CS_FEATURE_KEEP_LAST)
        cs_events_abandon(before);
    cs_process_enter(before ? CS_CAUSE_EXEC : CS_CAUSE_LAUNCH,
                     before ? before : cs_journal_find(cs_system_parent_pid(), 0));
}

bool cs_start(const char *directory, int argument_count, char **arguments) {
    uint64_t events_bytes, journal_bytes;
    Elf64_auxv_t vector[64];
    if (!arguments && read_file("/proc/self/auxv", vector, sizeof vector) >= sizeof *vector) {
        vector[63].a_type = AT_NULL;
        read_auxiliary_vector(vector);
    }
    uint8_t *events = map_session_file(directory, "/events", EVENTS_ADDRESS, &events_bytes);
    uint8_t *journal = events ? map_session_file(directory, "/journal", JOURNAL_ADDRESS, &journal_bytes) : NULL;
    if (!events || !journal || !prepare_blocks() || !bind_routines() ||
        !cs_session_open(events, events_bytes, journal, journal_bytes)) {
        if (events)
            cs_unmap(events, events_bytes);
        if (journal)
            cs_unmap(journal, journal_bytes);
        cs_session.events = NULL;
        return false;
    }
    describe_program(argument_count, arguments);
    cs_session.namespace_id = namespace_id();
    enter_process();
    if (arguments) {
        cs_stack_give();
        cs_signals_start();
    }
    if (cs_session.chunks_mapped < cs_session.chunk_limit)
        cs_note(CS_NOTE_ADDRESS_SPACE, "the address space is limited: the events file is used in part");
    cs_unwind_ready = cs_session.features & CS_FEATURE_STACKS;
    cs_switch_begin();
    cs_control_begin();
    cs_loader_start();
    cs_sampling_start();
    return true;
}

/* glibc gives constructors main's arguments; where that is not so, nothing is done. */
__attribute__((constructor)) static void start(int argument_count, char **arguments, char **environment) {
    if (argument_count < 0 || argument_count > 0x1000000 || (uint64_t)arguments % 8 ||
        environment != arguments + argument_count + 1)
        return;
    char **end = environment;
    while (*end)
        end++;
    read_auxiliary_vector((const Elf64_auxv_t *)(end + 1));
    const char *directory = cs_environment(environment, "CALLSCOPE_SESSION");
    const char *follow = cs_environment(environment, "CALLSCOPE_FOLLOW");
    cs_launch.recorder = cs_environment(environment, "CALLSCOPE_RECORDER");
    cs_session.alone = follow && cs_text_equal(follow, "0");
    if (!directory && cs_dropin_start(environment, &directory, &cs_launch.recorder))
        cs_session.alone = true;
    if (!directory || directory[0] != '/')
        return;
    cs_start(directory, argument_count, arguments);
    if (cs_session.alone)
        forget_environment(environment);
}

__attribute__((destructor)) static void stop(void) {
    if (!cs_session.events || cs_session.process->state != 2 || cs_session.process->pid != cs_system_pid())
        return;
    cs_crash_at_exit((uint64_t)__builtin_frame_address(0));
    uint64_t signals = cs_system_block_signals();
    cs_threads_reap(THREAD_LIMIT);
    if (cs_self()->block->used)
        cs_events_settle(cs_self()->block);
    cs_journal_write(CS_JOURNAL_PROCESS_END, cs_tsc(), cs_self()->block->used ? cs_self()->block : NULL, NULL, 0);
    cs_journal_forget(cs_session.process->pid);
    cs_dropin_finish();
    cs_system_restore_signals(signals);
}

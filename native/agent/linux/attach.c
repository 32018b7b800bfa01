/* What a recorder calls that attaches to the running program from outside (recording/attach_linux.py), on a thread that
 * it borrows: `begin`, again `look` and then `commit`, `settle`; and `detach_begin`, `detach_commit`, `detach_settle`.
 * All other threads stand still around `commit` and `detach_commit`, and run otherwise.
 *
 * The borrowed thread may hold any lock of the program's, so nothing here takes one; registering unwind tables does,
 * and is left to `settle`. */
#include "../core/memory.h"
#include "../core/system.h"
#include "callscope/script.h"
#include "linux.h"
#include "syscall.h"

#define CS_ATTACH __attribute__((visibility("default"), used))
#define SYSCALL_BYTES 2u
#define LONGEST_WAY 8u

/* A thread that stands still, as the recorder found it, and where it is to go on. */
struct stopped {
    uint64_t rip;
    uint64_t thread_pointer;
    uint64_t restarts; /* 1: the kernel moves it back to the system call instruction before `rip` */
    uint64_t state;    /* answered: 0 stays, 1 `rip` has changed, 2 has to move on by itself */
};

enum outcome { DONE, ALREADY, BUSY, NO_SESSION, CHANGED, STUCK };

enum cs_attachment cs_attachment;

/* Memory for the recorder's own purposes, or 0; without the C library, which may be traced. */
CS_ATTACH uint64_t callscope_attach_map(uint64_t bytes) {
    return (uint64_t)cs_system_memory(bytes);
}

CS_ATTACH uint64_t callscope_attach_unmap(uint64_t memory, uint64_t bytes) {
    cs_system_release((void *)memory, bytes);
    return DONE;
}

/* A file that the recorder opened for this process: what it is to find at `path`. */
CS_ATTACH uint64_t callscope_attach_give(const char *path, int descriptor) {
    cs_give(path, descriptor);
    return DONE;
}

/* Close what was given. */
CS_ATTACH uint64_t callscope_attach_give_up(void) {
    cs_give_up(NULL);
    return DONE;
}

/* program: the path of its file. */
CS_ATTACH uint64_t callscope_attach_begin(const char *directory, const char *recorder, const char *program) {
    static char socket[256], path[4096];
    uint64_t at = 0;
    if (cs_session.events)
        return ALREADY;
    if (cs_loader_busy())
        return BUSY;
    cs_text_append(socket, sizeof socket, &at, recorder);
    cs_launch.recorder = socket;
    at = 0;
    cs_text_append(path, sizeof path, &at, program);
    cs_launch.path = path;
    cs_attachment = CS_ATTACHMENT_PREPARES;
    if (!callscope_session_begin(directory)) {
        cs_attachment = CS_ATTACHMENT_NONE;
        return NO_SESSION;
    }
    cs_session.alone = true;
    return DONE;
}

CS_ATTACH uint64_t callscope_attach_look(void) {
    cs_loader_look();
    return DONE;
}

static void lead_out(struct stopped *thread) {
    uint64_t back = thread->restarts ? SYSCALL_BYTES : 0, at = thread->rip - back, to;
    thread->state = 0;
    for (uint32_t i = 0; i < cs_module_count && !thread->state; i++)
        if (!cs_region_moved(&cs_modules[i], at, &to))
            thread->state = 2;
        else if (to != at) {
            thread->rip = to + back;
            thread->state = 1;
        }
}

/* How many of the threads have to move on by themselves. */
static uint64_t lead_all(struct stopped *threads, uint64_t count, void lead(struct stopped *)) {
    uint64_t stuck = 0;
    for (uint64_t i = 0; i < count; i++) {
        lead(&threads[i]);
        stuck += threads[i].state == 2;
    }
    return stuck;
}

/* Nothing is written while a thread has to move on by itself. */
CS_ATTACH uint64_t callscope_attach_commit(struct stopped *threads, uint64_t count) {
    if (lead_all(threads, count, lead_out))
        return STUCK;
    if (!cs_loader_commit())
        return CHANGED;
    cs_attachment = CS_ATTACHMENT_RUNS;
    return DONE;
}

static void unmap_session(void) {
    cs_unmap(cs_session.events_file.base, cs_session.events_file.bytes);
    cs_unmap(cs_session.journal_file.base, cs_session.journal_file.bytes);
}

/* In place of `commit`. */
CS_ATTACH uint64_t callscope_attach_abort(void) {
    cs_loader_close(true);
    cs_journal_forget(cs_session.process->pid);
    cs_session.events = NULL;
    cs_attachment = CS_ATTACHMENT_NONE;
    unmap_session();
    return DONE;
}

CS_ATTACH uint64_t callscope_attach_settle(void) {
    cs_loader_settle();
    return DONE;
}

CS_ATTACH uint64_t callscope_detach_begin(void) {
    if (!cs_session.events || cs_attachment != CS_ATTACHMENT_RUNS || cs_session.process->pid != cs_system_pid())
        return NO_SESSION;
    cs_loader_open();
    return DONE;
}

/* Where trampolines lie: their start and end, for at most `limit` modules; how many there are. */
CS_ATTACH uint64_t callscope_attach_regions(uint64_t (*ranges)[2], uint64_t limit) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < cs_module_count && count < limit; i++)
        if (cs_modules[i].handle && cs_modules[i].region) {
            ranges[count][0] = (uint64_t)cs_modules[i].region;
            ranges[count++][1] = (uint64_t)cs_modules[i].region + cs_modules[i].region_bytes;
        }
    return count;
}

static bool is_patched(uint64_t at) {
    for (uint32_t i = 0; i < cs_module_count; i++)
        if (cs_region_patched(&cs_modules[i], at))
            return true;
    return false;
}

/* From a moved instruction back to where it came from. */
static bool lead_back(struct stopped *thread) {
    uint64_t back = thread->restarts ? SYSCALL_BYTES : 0, to;
    for (uint32_t i = 0; i < cs_module_count; i++)
        if (cs_region_back(&cs_modules[i], thread->rip - back, &to)) {
            thread->rip = to + back;
            return true;
        }
    return false;
}

/* Patches are jumps, and nops before them (Intel SDM volume 2, JMP, NOP): take them for a thread within one. */
static void follow(struct stopped *thread) {
    thread->state = 0;
    for (uint32_t i = 0; i < LONGEST_WAY && is_patched(thread->rip); i++) {
        const uint8_t *code = (const uint8_t *)thread->rip;
        int32_t far;
        memcpy(&far, code + 1, sizeof far);
        if (code[0] == 0xe9)
            thread->rip += 5 + (uint64_t)(int64_t)far;
        else if (code[0] == 0xeb)
            thread->rip += 2 + (uint64_t)(int64_t)(int8_t)code[1];
        else if (code[0] == 0x90)
            thread->rip++;
        else
            break;
        thread->state = 1;
    }
    if (is_patched(thread->rip))
        thread->state = 2;
    else if (lead_back(thread))
        thread->state = 1;
}

CS_ATTACH uint64_t callscope_detach_places(struct stopped *threads, uint64_t count) {
    return lead_all(threads, count, follow);
}

/* The thread has no block any more: the next session gives it one. */
static void take_block(uint64_t thread_pointer) {
    uint64_t self;
    if (cs_system_peek(&self, thread_pointer, sizeof self) != sizeof self || self != thread_pointer)
        return;
    struct cs_thread *thread = (struct cs_thread *)(thread_pointer + (uint64_t)cs_system_thread_place());
    memset(thread, 0, sizeof *thread);
    thread->block = &cs_no_block;
}

/* `clear`: no thread is in the agent or in a region. */
CS_ATTACH uint64_t callscope_detach_commit(const struct stopped *threads, uint64_t count, uint64_t clear) {
    cs_loader_revert();
    cs_threads_close();
    cs_journal_write(CS_JOURNAL_PROCESS_END, cs_tsc(), NULL, NULL, 0);
    cs_journal_forget(cs_session.process->pid);
    cs_session.events = NULL;
    for (uint64_t i = 0; clear && i < count; i++)
        take_block(threads[i].thread_pointer);
    if (clear)
        cs_session.highest_block = 0;
    return DONE;
}

CS_ATTACH uint64_t callscope_detach_settle(uint64_t clear) {
    cs_loader_close(clear);
    cs_attachment = CS_ATTACHMENT_NONE;
    if (clear)
        unmap_session();
    return DONE;
}

/* Stopping the other threads of a running program while its text is changed. */
#include "../core/memory.h"
#include "../core/plan.h"
#include "../core/system.h"
#include "windows_agent.h"

#define THREADS_LIMIT 1024u
#define TRIES 200u /* a millisecond apart */
#define ACCESS (THREAD_SUSPEND_RESUME | THREAD_GET_CONTEXT | THREAD_SET_CONTEXT | THREAD_QUERY_LIMITED_INFORMATION)

static HANDLE stopped[THREADS_LIMIT];
static uint32_t stopped_count;

static void let_go(void) {
    while (stopped_count) {
        HANDLE thread = stopped[--stopped_count];
        NtResumeThread(thread, NULL);
        NtClose(thread);
    }
}

void cs_threads_go_on(void) {
    let_go();
    cs_unlock(&cs_session.process->block_lock);
}

static bool is_own(HANDLE thread) {
    struct cs_thread_information information;
    return !NtQueryInformationThread(thread, 0, &information, sizeof information, NULL) &&
           (uint32_t)(uintptr_t)information.id.UniqueThread == cs_system_tid();
}

static bool is_stopped(HANDLE thread) {
    for (uint32_t i = 0; i < stopped_count; i++)
        if (stopped[i] == thread)
            return true;
    return false;
}

/* Stop all threads there are; those started meanwhile come last in the system's list. False when there are too many. */
static bool stop_all(void) {
    HANDLE thread = NULL, next;
    while (!NtGetNextThread(CS_SELF, thread, ACCESS, 0, 0, &next)) {
        if (thread && !is_stopped(thread))
            NtClose(thread);
        thread = next;
        if (is_own(thread))
            continue;
        if (stopped_count == THREADS_LIMIT)
            return false;
        if (!NtSuspendThread(thread, NULL))
            stopped[stopped_count++] = thread;
    }
    if (thread && !is_stopped(thread))
        NtClose(thread);
    return true;
}

/* Lead a stopped thread out of what will be overwritten; false when that has to wait. */
static bool lead_out(HANDLE thread, const struct cs_plan *plan, const uint8_t *image, const uint8_t *region) {
    static CONTEXT context;
    context.ContextFlags = CONTEXT_CONTROL;
    if (NtGetContextThread(thread, &context))
        return true; /* it has ended */
    uint64_t rva = context.Rip - (uint64_t)image;
    if (rva >= plan->header->image_span || !cs_plan_patch_around(plan, (uint32_t)rva))
        return true;
    const struct cs_moved *moved = region ? cs_plan_moved_from(plan, (uint32_t)rva) : NULL;
    if (!moved)
        return false;
    context.Rip = (uint64_t)region + moved->place;
    return !NtSetContextThread(thread, &context);
}

bool cs_threads_stop(const struct cs_plan *plan, const uint8_t *image, const uint8_t *region) {
    for (uint32_t tries = 1;; tries++) {
        cs_lock(&cs_session.process->block_lock); /* the sampler stops threads with it: two could stop each other */
        bool clear = stop_all();
        for (uint32_t i = 0; clear && i < stopped_count; i++)
            clear = lead_out(stopped[i], plan, image, region);
        if (clear || tries == TRIES)
            return clear;
        cs_threads_go_on();
        cs_sleep(1);
    }
}

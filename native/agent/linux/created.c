/* Who made which thread, and from which call; what threads are called. The new thread begins in hooks.S, takes its
 * package, and goes on to the function it was made for as if it had been called by the C library. */
#include <errno.h>
#include <linux/prctl.h>

#include "../core/agent.h"
#include "../core/memory.h"
#include "../core/system.h"
#include "crash.h"
#include "interpose.h"

#define PACKAGES 1024u

struct package {
    uint32_t used;
    uint64_t start, argument;
    struct cs_thread_created created;
};

/* Threads on their way. Those that could not be made in the end keep theirs. */
static struct package packages[PACKAGES];

struct beginning {
    uint64_t start, argument;
};

/* pthread_self(): the thread pointer, which points to itself (System V ABI, 3.4.2). */
static uint64_t own_handle(void) {
    uint64_t handle;
    __asm__("mov %%fs:0, %0" : "=r"(handle));
    return handle;
}

void *cs_thread_create_next(void) {
    return cs_next(CS_NEXT_PTHREAD_CREATE);
}

/* What the new thread is given instead of its argument; NULL: it is to begin as it would without us. */
struct package *cs_thread_package(uint64_t start, uint64_t argument, uint64_t call_site) {
    if (!cs_session.events || cs_process_ignored())
        return NULL;
    static uint32_t next;
    uint32_t first = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < PACKAGES; i++) {
        struct package *package = &packages[(first + i) % PACKAGES];
        if (package->used || __atomic_exchange_n(&package->used, 1, __ATOMIC_ACQUIRE))
            continue;
        const struct cs_block *block = cs_self()->block;
        package->start = start;
        package->argument = argument;
        package->created = (struct cs_thread_created){.creator_thread = block->used ? block->thread : 0,
                                                      .creator_tid = cs_system_tid(),
                                                      .created_tsc = cs_tsc(),
                                                      .call_site = call_site,
                                                      .start_address = start};
        return package;
    }
    return NULL;
}

/* The first thing a new thread does. */
struct beginning cs_thread_begin(struct package *package) {
    struct beginning beginning = {package->start, package->argument};
    struct cs_thread_created created = package->created;
    __atomic_store_n(&package->used, 0, __ATOMIC_RELEASE);
    uint64_t signals = cs_system_block_signals();
    struct cs_block *block = cs_thread_block();
    if (block) {
        block->handle = own_handle();
        cs_journal_thread(CS_JOURNAL_THREAD_CREATED, block, &created, sizeof created);
        cs_stack_give();
    }
    cs_system_restore_signals(signals);
    return beginning;
}

static struct cs_block *block_of(uint64_t handle) {
    struct cs_process *process = cs_session.process;
    if (handle == own_handle())
        return cs_self()->block->used ? cs_self()->block : NULL;
    for (uint32_t i = process->first_block; i < process->block_count; i++)
        if (cs_session.blocks[i].used && cs_session.blocks[i].handle == handle)
            return &cs_session.blocks[i];
    return NULL;
}

/* A thread has been given a name. */
static void named(uint64_t handle, const char *name) {
    if (!cs_session.events || cs_process_ignored() || cs_session.process->pid != cs_system_pid())
        return;
    uint64_t signals = cs_system_block_signals();
    struct cs_block *block = block_of(handle);
    if (block)
        cs_thread_rename(block, name);
    cs_system_restore_signals(signals);
}

CS_INTERPOSE int pthread_setname_np(uint64_t thread, const char *name) {
    int (*real)(uint64_t, const char *) = cs_next(CS_NEXT_PTHREAD_SETNAME);
    int result = real ? real(thread, name) : ENOSYS;
    if (!result)
        named(thread, name);
    return result;
}

CS_INTERPOSE int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d) {
    int (*real)(int, unsigned long, unsigned long, unsigned long, unsigned long) = cs_next(CS_NEXT_PRCTL);
    int result = real ? real(option, a, b, c, d) : -1;
    if (!result && option == PR_SET_NAME) {
        char name[CS_THREAD_NAME_BYTES];
        cs_system_thread_name(name);
        named(own_handle(), name);
    }
    return result;
}

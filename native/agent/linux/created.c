/* Who made which thread, and from which call. The new thread begins in hooks.S, takes its package, and goes on to the
 * function it was made for as if it had been called by the C library. */
#include "../core/agent.h"
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
    const struct cs_block *block = cs_thread_block();
    if (block) {
        struct cs_part part = {&created, sizeof created};
        cs_journal_write(CS_JOURNAL_THREAD_CREATED, cs_tsc(), block, &part, 1);
        cs_stack_give();
    }
    cs_system_restore_signals(signals);
    return beginning;
}

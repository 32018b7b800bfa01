/* Threads and processes as they show up: blocks are given at a thread's first event and taken back when the thread is
 * found to have ended. Neither fork nor the end of a thread is hooked. */
#include "agent.h"
#include "memory.h"
#include "remembered.h"
#include "system.h"
#include "unwind.h"

/* Blocks looked at for an ended owner whenever a thread registers: keeps thread churn from growing the table. */
#define REAP_CHECKS 8

struct cs_block cs_no_block;

/* Take the events of threads that may not record; they are shared and nobody reads them. One holds many events; the
 * other only one, for a vfork child whose parent has no block yet: the parent, which uses the same thread-local data,
 * must come to the slow path with its first event afterwards. */
static uint8_t discard[4096] __attribute__((aligned(8)));
static struct cs_block discard_many, discard_one;

static void use_discard(struct cs_block *block, uint64_t bytes) {
    block->limit = (uint64_t)discard + sizeof discard;
    block->end = (uint64_t)discard + bytes;
    block->cursor = (uint64_t)discard;
    block->epoch = (uint32_t)(cs_now() >> 32);
    cs_self()->block = block;
}

static void discard_events(bool only_one) {
    use_discard(only_one ? &discard_one : &discard_many, only_one ? 1 : sizeof discard - sizeof(struct cs_short_event));
}

void cs_mute(void) {
    if (!cs_self()->muted++)
        cs_self()->kept = cs_self()->block;
    discard_events(false);
}

void cs_unmute(void) {
    if (!--cs_self()->muted)
        cs_self()->block = cs_self()->kept;
}

void cs_pause(void) {
    struct cs_thread *self = cs_self();
    if (self->paused++)
        return;
    self->left = self->block;
    discard_events(false);
}

void cs_resume(void) {
    struct cs_thread *self = cs_self();
    if (self->paused && !--self->paused)
        self->block = self->left;
}

void cs_process_enter(uint32_t cause, uint32_t parent) {
    struct cs_process *process = cs_session.process;
    uint32_t state = 0;
    if (__atomic_load_n(&process->state, __ATOMIC_ACQUIRE) == 2)
        return;
    if (!__atomic_compare_exchange_n(&process->state, &state, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
        while (__atomic_load_n(&process->state, __ATOMIC_ACQUIRE) != 2)
            cs_system_yield();
        return;
    }
    process->pid = cs_system_pid();
    process->process = __atomic_add_fetch(&cs_session.events->next_process, 1, __ATOMIC_RELAXED);
    process->first_block = cs_session.highest_block < cs_session.block_limit ? cs_session.highest_block : 0;
    process->block_count = process->first_block;
    cs_journal_process(cause, parent);
    cs_session.last_process = process->process;
    __atomic_store_n(&process->state, 2, __ATOMIC_RELEASE);
}

bool cs_process_ignored(void) {
    return cs_session.alone && cs_session.last_process &&
           __atomic_load_n(&cs_session.process->state, __ATOMIC_ACQUIRE) != 2;
}

/* Settle what an ended thread left behind; its block is then free. */
static void bury(struct cs_block *block) {
    cs_events_close(block);
    cs_journal_thread_name(CS_JOURNAL_THREAD_END, block);
    cs_events_release_sink(block);
    cs_depth_free(block->lanes);
    cs_sampling_end(block);
    if (block->last_stack)
        cs_system_release(block->last_stack, sizeof(struct cs_remembered));
    memset(block, 0, sizeof *block);
}

/* With block_lock held: look at up to `checks` blocks in turn. */
static void reap(uint32_t checks) {
    struct cs_process *process = cs_session.process;
    uint32_t count = process->block_count - process->first_block;
    for (checks = checks < count ? checks : count; checks; checks--) {
        if (process->next_check < process->first_block || process->next_check >= process->block_count)
            process->next_check = process->first_block;
        struct cs_block *block = &cs_session.blocks[process->next_check++];
        if (block->used && block->tid && cs_system_thread_gone(process->pid, block->tid))
            bury(block);
    }
}

void cs_threads_reap(uint32_t checks) {
    cs_lock(&cs_session.process->block_lock);
    reap(checks);
    cs_unlock(&cs_session.process->block_lock);
}

void cs_threads_close(void) {
    struct cs_process *process = cs_session.process;
    cs_lock(&process->block_lock);
    for (uint32_t i = process->first_block; i < process->block_count; i++)
        if (cs_session.blocks[i].used)
            bury(&cs_session.blocks[i]);
    cs_unlock(&process->block_lock);
}

/* With block_lock held. NULL when all are taken. */
static struct cs_block *find_block(uint32_t tid) {
    struct cs_process *process = cs_session.process;
    struct cs_block *found = NULL;
    for (uint32_t i = process->first_block; i < process->block_count; i++) {
        struct cs_block *block = &cs_session.blocks[i];
        if (block->used && tid && block->tid == tid)
            bury(block); /* of an ended thread, whose id was given again */
        if (!block->used && !found)
            found = block;
    }
    if (!found && process->block_count < cs_session.block_limit) {
        found = &cs_session.blocks[process->block_count++];
        if (cs_session.highest_block < process->block_count)
            cs_session.highest_block = process->block_count;
    }
    return found;
}

struct cs_block *cs_thread_block(void) {
    struct cs_thread *self = cs_self();
    if (self->muted)
        return NULL;
    if (self->paused)
        return self->left->used ? self->left : NULL;
    if (self->block->used)
        return self->block;
    if (cs_process_ignored())
        return NULL;
    cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    struct cs_process *process = cs_session.process;
    uint32_t pid = cs_system_pid();
    if (pid && pid != process->pid)
        return NULL; /* a vfork child: its thread id would be taken for its parent's */
    uint32_t tid = cs_system_tid();
    cs_lock(&process->block_lock);
    reap(REAP_CHECKS);
    struct cs_block *block = find_block(tid);
    if (block) {
        block->tid = tid;
        block->thread = __atomic_add_fetch(&cs_session.events->next_thread, 1, __ATOMIC_RELAXED);
        block->lanes = self->lanes;
        block->used = 1;
    }
    cs_unlock(&process->block_lock);
    if (!block) {
        cs_note(CS_NOTE_THREADS, "too many threads at a time: the events of some are lost");
        return NULL;
    }
    cs_system_thread_name(block->name);
    cs_journal_take_cell(block);
    cs_journal_thread_name(CS_JOURNAL_THREAD_START, block);
    self->block = block;
    cs_sampling_begin(block);
    cs_control_begin();
    return block;
}

void cs_thread_rename(struct cs_block *block, const char *name) {
    uint64_t bytes = cs_text_length(name);
    memset(block->name, 0, sizeof block->name);
    memcpy(block->name, name, bytes < sizeof block->name ? bytes : sizeof block->name - 1);
    cs_journal_thread_name(CS_JOURNAL_THREAD_START, block);
}

void cs_thread_follow_name(struct cs_block *block) {
    char name[CS_THREAD_NAME_BYTES];
    cs_system_thread_name(name);
    if (name[0] && !cs_text_equal(name, block->name))
        cs_thread_rename(block, name);
}

void cs_refill(uint64_t sp) {
    uint64_t signals = cs_system_block_signals();
    bool ended = !cs_session.events; /* while this thread was on its way here */
    struct cs_block *block = ended || cs_self()->paused ? NULL : cs_thread_block();
    if (!block) {
        bool wanted = !ended && !cs_self()->muted && !cs_self()->paused && !cs_process_ignored();
        if (wanted)
            __atomic_fetch_add(&cs_session.events->lost, 1, __ATOMIC_RELAXED);
        discard_events(wanted);
    } else if (block->cursor >= block->end) {
        const struct cs_chunk_header *before = block->chunk;
        cs_events_advance(block, sp);
        if (block->chunk != before)
            cs_thread_follow_name(block);
    }
    cs_system_restore_signals(signals);
}

void cs_new_epoch(uint32_t *slot, uint32_t bytes, uint32_t epoch) {
    uint64_t signals = cs_system_block_signals();
    if (bytes > sizeof(struct cs_entry_event)) { /* holds nothing: its type is 0 */
        slot[3] = (bytes / 8 - 1) << 3 | CS_EVENT_EXTENDED;
        slot[2] = 0;
    } else if (bytes == sizeof(struct cs_entry_event)) {
        slot[3] = CS_CONTROL_SKIP << 3 | CS_EVENT_CONTROL;
        slot[2] = 0;
    }
    slot[1] = CS_CONTROL_EPOCH << 3 | CS_EVENT_CONTROL;
    slot[0] = epoch;
    cs_self()->block->epoch = epoch;
    cs_system_restore_signals(signals);
}

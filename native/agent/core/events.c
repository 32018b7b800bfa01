/* Chunks of the events file: claimed by an atomic counter, backed by memory in growing steps, closed, recycled. */
#include "agent.h"
#include "memory.h"
#include "system.h"

/* A short-lived thread should not pay for a whole chunk, so memory is added in steps that double. */
#define FIRST_STEP 0x10000ull
#define LARGEST_STEP 0x80000ull
/* Chunks of a flight recorder: FETCH_AHEAD of the routines is more than this. */
#define WIPED_STEP 0x4000ull
#define HELD_TICKS 0x100000000ull /* a second or two: the recorder looks often */
#define SINK_BYTES 0x10000ull

/* chunk_header.flags: OPEN while a thread writes there, CLAIMED until its header names that thread. The bits above
 * count the owners, so that of two threads which find a chunk abandoned only one gets it. */
#define OPEN 1u
#define CLAIMED 2u
#define OWNER 4u

/* Events that start here would not fit whole before the limit. */
static void set_room(struct cs_block *block, uint8_t *start, uint8_t *limit) {
    block->limit = (uint64_t)limit;
    block->end = block->limit - sizeof(struct cs_short_event);
    block->cursor = (uint64_t)start;
}

static uint8_t *chunk_at(uint64_t number) {
    return cs_session.events_file.base + number * cs_session.chunk_bytes;
}

static bool commit(uint8_t *start, uint64_t bytes) {
    return cs_file_commit(&cs_session.events_file, (uint64_t)(start - cs_session.events_file.base), bytes);
}

static bool owner_gone(const struct cs_chunk_header *header) {
    const struct cs_process *process = cs_session.process;
    if (header->namespace_or_end != cs_session.namespace_id || !cs_session.namespace_id)
        return false;
    if (header->pid == process->pid && header->process != process->process)
        return true;
    return cs_system_thread_gone(header->pid, header->tid);
}

/* `recycled`: somebody had it before. The claim's number does not tell: who was slow to take it may find that the ring
 * went round meanwhile. */
static bool take(struct cs_chunk_header *header, bool *recycled) {
    const struct cs_events_header *events = cs_session.events;
    uint32_t flags = __atomic_load_n(&header->flags, __ATOMIC_ACQUIRE);
    if (events->held && events->held == header->process && cs_tsc() < events->held_until)
        return false;
    if (flags & CLAIMED || (flags & OPEN && !owner_gone(header)))
        return false;
    *recycled = flags;
    return __atomic_compare_exchange_n(&header->flags, &flags, (flags | OPEN | CLAIMED) + OWNER, false,
                                       __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void write_header(struct cs_block *block, struct cs_chunk_header *header, uint64_t claim, uint64_t sp,
                         uint64_t used) {
    uint64_t tsc = cs_tsc();
    cs_clock_pass(tsc); /* should nobody else move it on */
    uint64_t now = cs_now();
    header->process = cs_session.process->process;
    header->pid = cs_session.process->pid;
    header->tid = block->tid;
    header->thread = block->thread;
    header->sequence = claim;
    header->tsc = now;
    header->sp = sp;
    header->used = used;
    header->namespace_or_end = cs_session.namespace_id;
    __atomic_store_n(&header->magic, CS_CHUNK_MAGIC, __ATOMIC_RELEASE);
    block->owner = __atomic_and_fetch(&header->flags, ~CLAIMED, __ATOMIC_RELEASE);
    block->chunk = header;
    block->stack_base = 0;
    block->epoch = (uint32_t)(now >> 32);
}

/* Begin chunk `number`, whose first step has memory, for claim `claim`. In a recycled chunk `used` bounds what is valid
 * from the start: old events lie behind, until they are wiped step by step while they are in the cache anyway. */
static void begin_chunk(struct cs_block *block, uint64_t claim, uint64_t number, uint64_t sp, bool recycled) {
    struct cs_chunk_header *header = (struct cs_chunk_header *)chunk_at(number);
    __atomic_store_n(&header->magic, 0, __ATOMIC_RELEASE);
    uint64_t step = recycled ? WIPED_STEP : FIRST_STEP;
    if (recycled)
        memset(header + 1, 0, step - sizeof *header);
    __atomic_fetch_or(&header->flags, OPEN, __ATOMIC_RELAXED);
    write_header(block, header, claim, sp, recycled ? step : 0);
    set_room(block, (uint8_t *)(header + 1), (uint8_t *)header + step);
}

/* Recording ends for good, in all processes of the session: each finds out when it needs a chunk. */
static void stop(uint32_t reason) {
    struct cs_events_header *events = cs_session.events;
    uint32_t before = CS_STOP_NONE;
    if (__atomic_compare_exchange_n(&events->stopped, &before, reason, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        events->stopped_tsc = cs_tsc(); /* here, as the journal may have no room either */
}

/* The number of the next chunk that nobody had yet; 0: there is none. */
static uint64_t claim_number(void) {
    struct cs_events_header *events = cs_session.events;
    uint64_t allowed = __atomic_load_n(&events->allowed, __ATOMIC_RELAXED);
    uint64_t limit = allowed && allowed < cs_session.chunks_mapped ? allowed : cs_session.chunks_mapped, claim = 0;
    if (__atomic_load_n(&events->next_chunk, __ATOMIC_RELAXED) < limit)
        do
            claim = __atomic_fetch_add(&events->next_chunk, 1, __ATOMIC_RELAXED);
        while (!claim);
    if (claim && claim < limit)
        return claim;
    if (limit == allowed)
        stop(CS_STOP_SIZE);
    else if (limit == cs_session.chunk_limit)
        stop(CS_STOP_DISK);
    else
        cs_note(CS_NOTE_FULL, "the events file is full: later events are lost");
    return 0;
}

static bool claim_fresh(struct cs_block *block, uint64_t sp) {
    uint64_t claim = __atomic_load_n(&cs_session.events->stopped, __ATOMIC_RELAXED) ? 0 : claim_number();
    if (!claim)
        return false;
    if (!commit(chunk_at(claim), FIRST_STEP)) {
        stop(CS_STOP_DISK);
        return false;
    }
    begin_chunk(block, claim, claim, sp, false);
    return true;
}

/* Whether what is in a chunk may go: it ended long enough ago. An open one began long enough ago; its thread may live.
 */
static bool is_old(const struct cs_chunk_header *header) {
    uint64_t ended = header->flags & OPEN ? header->tsc : header->namespace_or_end, now = cs_tsc();
    return now > ended && now - ended >= cs_session.events->keep_ticks;
}

/* A flight recorder by time: the number of the chunk to be tried next. Those in use lie in a circle, which grows while
 * the next one is too young to go. */
static uint64_t next_by_age(void) {
    struct cs_events_header *events = cs_session.events;
    for (;;) {
        uint64_t used = __atomic_load_n(&events->ring_used, __ATOMIC_RELAXED), most = cs_session.chunk_limit - 1;
        uint64_t hand = __atomic_load_n(&events->ring_hand, __ATOMIC_RELAXED);
        uint64_t number = hand && hand <= used ? hand : 1;
        const struct cs_chunk_header *header = (const struct cs_chunk_header *)chunk_at(number);
        bool grows = used < most && (!used || number >= cs_session.chunks_mapped ||
                                     !commit((uint8_t *)header, sizeof *header) || !is_old(header));
        if (grows) {
            if (__atomic_compare_exchange_n(&events->ring_used, &used, used + 1, false, __ATOMIC_RELAXED,
                                            __ATOMIC_RELAXED))
                return used + 1;
        } else if (__atomic_compare_exchange_n(&events->ring_hand, &hand, number + 1, false, __ATOMIC_RELAXED,
                                               __ATOMIC_RELAXED))
            return number;
    }
}

/* Flight recorder: the oldest chunk no live thread writes to. */
static bool claim_recycled(struct cs_block *block, uint64_t sp) {
    uint64_t ring = cs_session.chunk_limit - 1;
    for (uint64_t tries = 0; tries < 2 * ring; tries++) {
        uint64_t claim = __atomic_fetch_add(&cs_session.events->next_chunk, 1, __ATOMIC_RELAXED);
        if (!claim)
            continue;
        uint64_t number = cs_session.events->keep_ticks ? next_by_age() : 1 + (claim - 1) % ring;
        if (number >= cs_session.chunks_mapped)
            continue;
        struct cs_chunk_header *header = (struct cs_chunk_header *)chunk_at(number);
        bool recycled;
        if (!commit((uint8_t *)header, FIRST_STEP) || !take(header, &recycled))
            continue;
        begin_chunk(block, claim, number, sp, recycled);
        return true;
    }
    cs_note(CS_NOTE_FULL, "more threads at a time than the flight recorder has room for: events are lost");
    return false;
}

/* The next step of the chunk in use; false at its end, or when there is no memory. */
static bool extend(struct cs_block *block) {
    uint8_t *start = (uint8_t *)block->chunk, *limit = (uint8_t *)block->limit;
    uint64_t used = (uint64_t)(limit - start), rest = cs_session.chunk_bytes - used;
    bool recycled = block->chunk->used;
    uint64_t step = recycled ? WIPED_STEP : used < LARGEST_STEP ? used : LARGEST_STEP;
    if (step > rest)
        step = rest;
    if (!step)
        return false;
    if (!commit(limit, step)) {
        if (!(cs_session.features & CS_FEATURE_KEEP_LAST))
            stop(CS_STOP_DISK);
        return false;
    }
    if (recycled) {
        memset(limit, 0, step);
        __atomic_store_n(&block->chunk->used, used + step, __ATOMIC_RELEASE);
    }
    set_room(block, limit, limit + step);
    return true;
}

/* A thread that has ended may have lost its chunk to another before anybody closed it. */
static void close_chunk(struct cs_chunk_header *header, uint32_t owner, uint64_t used) {
    if (!__atomic_compare_exchange_n(&header->flags, &owner, owner | CLAIMED, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED))
        return;
    header->used = used;
    header->namespace_or_end = cs_tsc();
    __atomic_fetch_and(&header->flags, ~(OPEN | CLAIMED), __ATOMIC_RELEASE);
}

void cs_events_close(struct cs_block *block) {
    struct cs_chunk_header *header = block->chunk;
    if (!header) {
        cs_events_settle(block);
        return;
    }
    uint64_t end = block->cursor < block->limit ? block->cursor : block->limit;
    close_chunk(header, block->owner, end - (uint64_t)header);
    block->chunk = NULL;
    block->stack_base = 0;
    set_room(block, NULL, (uint8_t *)sizeof(struct cs_short_event));
}

void cs_events_settle(struct cs_block *block) {
    if (block->chunk || !block->sink)
        return;
    uint64_t end = block->cursor < block->end ? block->cursor : block->end, lost = 0;
    for (uint64_t at = (uint64_t)block->sink; at < end; lost++) {
        uint32_t kind = ((struct cs_short_event *)at)->sp & CS_EVENT_KIND_MASK;
        bool is_long = kind == CS_EVENT_ENTRY || kind == CS_EVENT_CALL;
        uint32_t units = ((struct cs_short_event *)at)->sp >> 3;
        if (kind == CS_EVENT_EXTENDED && units)
            at += units * 8ull - sizeof(struct cs_short_event);
        at += is_long ? sizeof(struct cs_entry_event) : sizeof(struct cs_short_event);
        if (!is_long && kind != CS_EVENT_EXIT && kind != CS_EVENT_TAIL)
            lost--;
    }
    __atomic_fetch_add(&cs_session.events->lost, lost, __ATOMIC_RELAXED);
    block->cursor = (uint64_t)block->sink;
}

void cs_events_release_sink(struct cs_block *block) {
    if (block->sink)
        cs_system_release(block->sink, SINK_BYTES);
    block->sink = NULL;
}

static void use_sink(struct cs_block *block) {
    /* One sink for threads that cannot get their own: they overwrite each other, and nobody reads it. */
    static uint8_t shared_sink[256] __attribute__((aligned(8)));
    uint64_t bytes = SINK_BYTES;
    if (!block->sink)
        block->sink = cs_system_memory(SINK_BYTES);
    uint8_t *sink = block->sink;
    if (!sink) {
        sink = shared_sink;
        bytes = sizeof shared_sink;
        __atomic_fetch_add(&cs_session.events->lost, 1, __ATOMIC_RELAXED);
    }
    set_room(block, sink, sink + bytes);
}

void cs_events_advance(struct cs_block *block, uint64_t sp) {
    if (cs_session.torn)
        stop(CS_STOP_DISK);
    if (block->chunk && extend(block))
        return;
    cs_events_close(block);
    bool recycle = cs_session.features & CS_FEATURE_KEEP_LAST && !cs_session.torn;
    if (recycle ? claim_recycled(block, sp) : claim_fresh(block, sp))
        return;
    use_sink(block);
    if (__atomic_load_n(&cs_session.events->stopped, __ATOMIC_RELAXED))
        cs_stop_for_good();
}

void cs_events_hold(void) {
    cs_session.events->held_until = cs_tsc() + HELD_TICKS;
    __atomic_store_n(&cs_session.events->held, cs_session.process->process, __ATOMIC_RELEASE);
}

void cs_events_abandon(uint32_t process) {
    for (uint64_t number = 1; number < cs_session.chunks_mapped; number++) {
        struct cs_chunk_header *header = (struct cs_chunk_header *)chunk_at(number);
        if (number >= __atomic_load_n(&cs_session.events->next_chunk, __ATOMIC_RELAXED))
            return;
        if (commit((uint8_t *)header, sizeof *header) && header->magic == CS_CHUNK_MAGIC && header->process == process)
            __atomic_fetch_and(&header->flags, ~OPEN, __ATOMIC_RELEASE);
    }
}

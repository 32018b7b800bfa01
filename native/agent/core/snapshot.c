/* Call stacks as events. As a rule a stack has most frames in common with the thread's last one, and is recorded as
 * what is new. Otherwise the walk writes into the thread's chunk itself, in room taken for the deepest stack, of which
 * the unused rest is given back. Until it is done, the room reads as a record that holds nothing. */
#include "agent.h"
#include "memory.h"
#include "remembered.h"
#include "system.h"
#include "tables.h"
#include "unwind.h"

#define MOST_BYTES (sizeof(struct cs_stack_event) + 8ull * CS_STACK_DEEPEST)
#define LEAST_BYTES (sizeof(struct cs_stack_event) + 8ull * 32)
#define TRIES 16

struct capture {
    const struct cs_registers *registers;
    uint64_t tsc, tag;
    uint32_t cause;
    bool exact;
    struct cs_block *other; /* of a stopped thread whose stack it is; NULL: of the calling one */
};

static struct cs_block *block_of(const struct capture *capture) {
    return capture->other ? capture->other : cs_self()->block;
}

static uint32_t extended(uint64_t bytes) {
    return (uint32_t)(bytes / 8) << 3 | CS_EVENT_EXTENDED;
}

/* Move the thread's cursor unless a signal's events have moved it meanwhile. */
static bool move_cursor(struct cs_block *block, uint64_t from, uint64_t to) {
    bool done;
    __asm__ volatile("cmpxchg %3, %1" : "=@ccz"(done), "+m"(block->cursor), "+a"(from) : "r"(to) : "memory");
    return done;
}

static void next_room(const struct capture *capture, struct cs_block *block) {
    uint64_t sp = capture->registers->at[CS_RSP];
    uint64_t skip = MOST_BYTES; /* what is left there stays zero: nothing */
    __asm__ volatile("xadd %0, %1" : "+r"(skip), "+m"(block->cursor) : : "memory", "cc");
    if (!capture->other)
        cs_refill(sp);
    else if (block->cursor >= block->end)
        cs_events_advance(block, sp);
}

/* At least `least` bytes at the thread's cursor; how many, or 0 when there are none to be had. */
static uint64_t take_room(const struct capture *capture, uint64_t least, struct cs_block **owner,
                          struct cs_stack_event **event) {
    for (int i = 0; i < TRIES; i++) {
        struct cs_block *block = block_of(capture);
        uint64_t at = block->cursor, limit = block->limit;
        uint64_t room = at < block->end && at < limit ? limit - at : 0;
        if (room < least) {
            next_room(capture, block);
            continue;
        }
        room = room < MOST_BYTES ? room : MOST_BYTES;
        *owner = block;
        *event = (struct cs_stack_event *)at;
        if (move_cursor(block, at, at + room))
            return room;
    }
    return 0;
}

static void give_back(struct cs_block *block, struct cs_stack_event *event, uint64_t room, uint64_t used) {
    if (used == room || move_cursor(block, (uint64_t)event + room, (uint64_t)event + used))
        return;
    uint32_t *rest = (uint32_t *)((uint64_t)event + used);
    rest[0] = 0;
    rest[1] = extended(room - used);
}

/* False: the stack is deeper than there was room for. */
static bool record(const struct capture *capture, uint64_t least) {
    struct cs_block *block;
    struct cs_stack_event *event;
    uint64_t sp = capture->registers->at[CS_RSP], room = take_room(capture, least, &block, &event);
    if (!room)
        return true;
    event->type = 0;
    __atomic_store_n(&event->size, extended(room), __ATOMIC_RELEASE);
    struct cs_walk walk = {.out = (uint64_t *)(event + 1), .limit = (uint32_t)((room - sizeof *event) / 8)};
    if (block->used) {
        walk.low = block->stack_low;
        walk.high = block->stack_high;
    }
    cs_walk_stack(&walk, capture->registers, capture->exact);
    if (walk.flags & CS_STACK_LIMITED && room < MOST_BYTES)
        return false;
    if (block->used) {
        bool known = !(walk.flags & CS_STACK_BROKEN) && sp - walk.low < walk.high - walk.low;
        block->stack_low = known ? walk.low : 0;
        block->stack_high = known ? walk.high : 0;
    }
    event->tsc = capture->tsc;
    event->tag = capture->tag;
    event->count = walk.count;
    event->flags = (uint16_t)walk.flags;
    event->cause = (uint16_t)capture->cause;
    uint64_t used = sizeof *event + 8ull * walk.count;
    give_back(block, event, room, used);
    event->type = CS_EXTENDED_STACK;
    __atomic_store_n(&event->size, extended(used), __ATOMIC_RELEASE);
    return true;
}

/* ---- With the last stack of the thread */

static void begin_record(void *event, uint64_t bytes) {
    __atomic_store_n((uint64_t *)event, (uint64_t)extended(bytes) << 32, __ATOMIC_RELEASE);
}

static void end_record(void *event, uint32_t type) {
    __atomic_store_n((uint32_t *)event, type, __ATOMIC_RELEASE);
}

static void write_whole(const struct capture *capture, uint64_t at, uint64_t bytes, const struct cs_remembered *last) {
    struct cs_stack_event *event = (struct cs_stack_event *)at;
    uint64_t *out = (uint64_t *)(event + 1);
    begin_record(event, bytes);
    event->tsc = capture->tsc;
    event->tag = capture->tag;
    event->count = last->count;
    event->flags = 0;
    event->cause = (uint16_t)capture->cause;
    for (uint32_t i = last->count; i;)
        *out++ = last->frames[--i].rip;
    end_record(event, CS_EXTENDED_STACK);
}

static void write_shared(const struct capture *capture, uint64_t at, uint64_t bytes, const struct cs_remembered *last,
                         uint32_t base) {
    struct cs_stack_shared_event *event = (struct cs_stack_shared_event *)at;
    uint64_t *out = (uint64_t *)(event + 1);
    begin_record(event, bytes);
    event->tsc = capture->tsc;
    event->tag = capture->tag;
    event->base = base;
    event->outer = (uint16_t)last->common;
    event->cause = (uint16_t)capture->cause;
    for (uint32_t i = last->count; i > last->common;)
        *out++ = last->frames[--i].rip;
    end_record(event, CS_EXTENDED_STACK_SHARED);
}

/* Record `last`: what it shares with the chunk's last whole stack as a reference to that. */
static bool write(const struct capture *capture, struct cs_block *block, struct cs_remembered *last) {
    for (int i = 0; i < TRIES; i++) {
        uint64_t at = __atomic_load_n(&block->cursor, __ATOMIC_RELAXED);
        /* Where the cursor has not moved since, the chunk is still the same. */
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        uint32_t base = block->stack_base;
        bool shared = base && last->common > last->count / 2;
        uint64_t bytes = shared ? sizeof(struct cs_stack_shared_event) + 8ull * (last->count - last->common)
                                : sizeof(struct cs_stack_event) + 8ull * last->count;
        if (at >= block->end || at + bytes > block->limit) {
            next_room(capture, block);
            if (block_of(capture) != block)
                return false;
            continue;
        }
        if (!move_cursor(block, at, at + bytes))
            continue;
        if (shared) {
            write_shared(capture, at, bytes, last, base);
            return true;
        }
        struct cs_chunk_header *chunk = block->chunk;
        write_whole(capture, at, bytes, last);
        last->common = last->count;
        if (chunk == block->chunk)
            block->stack_base = chunk ? (uint32_t)((at - (uint64_t)chunk) / 8) : 0;
        return true;
    }
    return false;
}

/* False: it has to be walked in the plain way. */
static bool record_remembered(const struct capture *capture) {
    struct cs_block *block = block_of(capture);
    if (!block->used)
        return false;
    struct cs_remembered *last = block->last_stack;
    if (!last)
        last = block->last_stack = cs_system_memory(sizeof *last);
    if (!last || last->busy)
        return false; /* a signal has come in the midst of another capture */
    last->busy = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    struct cs_walk walk = {.low = block->stack_low, .high = block->stack_high};
    bool done = cs_recall(last, &walk, capture->registers, capture->exact);
    if (done) {
        block->stack_low = walk.low;
        block->stack_high = walk.high;
        last->common = last->common < last->kept ? last->common : last->kept;
        done = write(capture, block, last);
    }
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    last->busy = 0;
    return done;
}

void cs_snapshot(const struct cs_registers *registers, bool exact, uint64_t tag, uint32_t cause,
                 struct cs_block *block) {
    struct capture capture = {registers, cs_now(), tag, cause, exact, block};
    if (!record_remembered(&capture) && !record(&capture, LEAST_BYTES))
        record(&capture, MOST_BYTES);
}

/* The whole stack is the last one, and the chunk has it: the most frequent case has a short way. False: it is not so.
 */
static bool repeat(const struct cs_called *called, uint64_t tag) {
    struct cs_block *block = cs_self()->block;
    struct cs_remembered *last = block->last_stack;
    uint64_t at = block->cursor, bytes = sizeof(struct cs_stack_shared_event);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (!last || last->busy || !block->stack_base || !last->count || last->common != last->count ||
        last->generation != cs_unwind_generation() || at >= block->end || at + bytes > block->limit)
        return false;
    const struct cs_walked *frame = &last->frames[last->count - 1];
    if (frame->rip != called->back || frame->sp != (uint64_t)(called + 1) ||
        (frame->needs_bp && frame->bp != called->rbp))
        return false;
    struct capture capture = {.tsc = cs_now(), .tag = tag, .cause = CS_STACK_CALLED};
    uint32_t base = block->stack_base;
    last->busy = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    bool done = cs_still_there(last, last->count - 1) && move_cursor(block, at, at + bytes);
    if (done)
        write_shared(&capture, at, bytes, last, base);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    last->busy = 0;
    return done;
}

void cs_captured(const struct cs_called *called, uint64_t tag) {
    if (repeat(called, tag))
        return;
    if (!cs_session.events || cs_self()->muted || cs_process_ignored())
        return;
    if (__builtin_expect(!cs_unwind_ready, 0))
        cs_unwind_start();
    struct cs_registers registers;
    registers.at[CS_RBX] = called->rbx;
    registers.at[CS_RBP] = called->rbp;
    registers.at[CS_RSP] = (uint64_t)(called + 1);
    for (uint32_t i = 0; i < 4; i++)
        registers.at[CS_R12 + i] = called->r12[i];
    /* The others belong to nobody at a call. */
    registers.at[0] = registers.at[1] = registers.at[2] = registers.at[4] = registers.at[5] = 0;
    registers.at[8] = registers.at[9] = registers.at[10] = registers.at[11] = 0;
    registers.rip = called->back;
    registers.place = registers.rip - 1;
    cs_snapshot(&registers, false, tag, CS_STACK_CALLED, NULL);
}

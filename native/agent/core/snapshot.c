/* Call stacks as events: the walk writes into the thread's chunk itself, in room taken for the deepest stack, of which
 * the unused rest is given back. Until it is done, the room reads as a record that holds nothing. */
#include "agent.h"
#include "memory.h"
#include "system.h"
#include "unwind.h"

#define MOST_BYTES (sizeof(struct cs_stack_event) + 8ull * CS_STACK_DEEPEST)
#define LEAST_BYTES (sizeof(struct cs_stack_event) + 8ull * 32)
#define TRIES 16

static uint32_t extended(uint64_t bytes) {
    return (uint32_t)(bytes / 8) << 3 | CS_EVENT_EXTENDED;
}

/* Move the thread's cursor unless a signal's events have moved it meanwhile. */
static bool move_cursor(struct cs_block *block, uint64_t from, uint64_t to) {
    bool done;
    __asm__ volatile("cmpxchg %3, %1" : "=@ccz"(done), "+m"(block->cursor), "+a"(from) : "r"(to) : "memory");
    return done;
}

/* At least `least` bytes at the thread's cursor; how many, or 0 when there are none to be had. */
static uint64_t take_room(uint64_t sp, uint64_t least, struct cs_block **owner, struct cs_stack_event **event) {
    for (int i = 0; i < TRIES; i++) {
        struct cs_block *block = cs_self()->block;
        uint64_t at = block->cursor, limit = block->limit;
        uint64_t room = at < block->end && at < limit ? limit - at : 0;
        if (room >= least) {
            room = room < MOST_BYTES ? room : MOST_BYTES;
            *owner = block;
            *event = (struct cs_stack_event *)at;
            if (move_cursor(block, at, at + room))
                return room;
            continue;
        }
        uint64_t skip = MOST_BYTES; /* what is left there stays zero: nothing */
        __asm__ volatile("xadd %0, %1" : "+r"(skip), "+m"(block->cursor) : : "memory", "cc");
        cs_refill(sp);
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
static bool record(const struct cs_registers *registers, bool exact, uint64_t tag, uint32_t cause, uint64_t least) {
    struct cs_block *block;
    struct cs_stack_event *event;
    uint64_t now = cs_tsc(), room = take_room(registers->at[CS_RSP], least, &block, &event);
    if (!room)
        return true;
    event->type = 0;
    __atomic_store_n(&event->size, extended(room), __ATOMIC_RELEASE);
    struct cs_walk walk = {.out = (uint64_t *)(event + 1), .limit = (uint32_t)((room - sizeof *event) / 8)};
    if (block->used) {
        walk.low = block->stack_low;
        walk.high = block->stack_high;
        if (!block->last_stack)
            block->last_stack = cs_system_memory(sizeof *walk.last);
        walk.last = block->last_stack;
        if (walk.last && walk.last->busy++)
            walk.last = NULL; /* a signal has come in the midst of another walk */
    }
    cs_walk_stack(&walk, registers, exact);
    if (block->used && block->last_stack)
        ((struct cs_remembered *)block->last_stack)->busy--;
    if (walk.flags & CS_STACK_LIMITED && room < MOST_BYTES)
        return false;
    if (block->used) {
        uint64_t sp = registers->at[CS_RSP];
        bool known = !(walk.flags & CS_STACK_BROKEN) && sp - walk.low < walk.high - walk.low;
        block->stack_low = known ? walk.low : 0;
        block->stack_high = known ? walk.high : 0;
    }
    event->tsc = now;
    event->tag = tag;
    event->count = walk.count;
    event->flags = (uint16_t)walk.flags;
    event->cause = (uint16_t)cause;
    uint64_t used = sizeof *event + 8ull * walk.count;
    give_back(block, event, room, used);
    event->type = CS_EXTENDED_STACK;
    __atomic_store_n(&event->size, extended(used), __ATOMIC_RELEASE);
    return true;
}

void cs_snapshot(const struct cs_registers *registers, bool exact, uint64_t tag, uint32_t cause) {
    if (!record(registers, exact, tag, cause, LEAST_BYTES))
        record(registers, exact, tag, cause, MOST_BYTES);
}

void cs_captured(const struct cs_called *called, uint64_t tag) {
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
    cs_snapshot(&registers, false, tag, CS_STACK_CALLED);
}

/* Arguments and results: small programs, compiled offline from a function's prototype, say what to copy from where.
 *
 * What is captured is collected first, for its size is not known before: then event and record take one reservation, so
 * that nothing comes between them. Pointers are the program's and may lead anywhere: what they point to is read by the
 * system. */
#include "agent.h"
#include "memory.h"
#include "system.h"
#include "unwind.h"

#define HEAD 8u /* of an EXTENDED record */

struct collected {
    uint32_t bytes;
    uint8_t data[CS_CAPTURE_LONGEST];
};

struct state {
    const struct cs_kept *frame;
    const struct cs_vectors *vectors;
    const uint64_t *place;
    struct collected *out;
};

/* The word of the frame that holds an integer register; those not kept are the same as at the call. */
static uint64_t integer(const struct cs_kept *frame, uint32_t number) {
    switch (number) {
    case 0:
        return frame->rax;
    case 1:
        return frame->rcx;
    case 2:
        return frame->rdx;
    case 5:
        return frame->rbp;
    case 6:
        return frame->rsi;
    case 7:
        return frame->rdi;
    case 8:
        return frame->r8;
    case 9:
        return frame->r9;
    case 10:
        return frame->r10;
    case 11:
        return frame->r11;
    default:
        return 0;
    }
}

static bool put(struct collected *out, const void *data, uint32_t bytes) {
    if (bytes > sizeof out->data - out->bytes)
        return false;
    memcpy(out->data + out->bytes, data, bytes);
    out->bytes += bytes;
    return true;
}

/* The bytes of a source, valid until the next call. */
static const uint8_t *source(const struct state *state, const struct cs_capture_op *op, uint8_t scratch[16]) {
    if (op->source == CS_CAPTURE_STACK)
        return (const uint8_t *)(state->place + 1) + op->offset;
    if (op->source == CS_CAPTURE_X87) {
        __asm__ volatile("fld %%st(0)\n\tfstpt (%0)" : : "r"(scratch) : "memory");
        return scratch;
    }
    if (op->source >= CS_CAPTURE_VECTOR)
        return (const uint8_t *)state->vectors->words[op->source % 8];
    uint64_t value = integer(state->frame, op->source);
    memcpy(scratch, &value, sizeof value);
    return scratch;
}

/* A count, then the bytes at `address`, up to `most`; where `text`, up to a NUL. */
static bool put_memory(struct collected *out, uint64_t address, uint32_t most, bool text) {
    uint16_t count = CS_CAPTURE_UNREADABLE;
    uint32_t room = (uint32_t)sizeof out->data - out->bytes;
    if (room < sizeof count)
        return false;
    most = most < room - sizeof count ? most : room - (uint32_t)sizeof count;
    uint8_t *to = out->data + out->bytes + sizeof count;
    uint32_t read = address ? (uint32_t)cs_system_peek(to, address, most) : 0;
    for (uint32_t i = 0; text && i < read; i++)
        if (!to[i])
            read = i + 1;
    if (read || (address && !most))
        count = (uint16_t)read;
    memcpy(out->data + out->bytes, &count, sizeof count);
    out->bytes += (uint32_t)sizeof count + read;
    return true;
}

static bool put_string(struct collected *out, uint64_t object, uint32_t most, bool libcxx) {
    uint64_t words[3] = {0}, length = 0, data = 0;
    if (object && cs_system_peek(words, object, sizeof words) == sizeof words) {
        if (!libcxx) { /* pointer, length */
            data = words[0];
            length = words[1];
        } else if (words[0] & 1) { /* capacity with its lowest bit set, length, pointer */
            length = words[1];
            data = words[2];
        } else { /* twice the length in a byte, then the text */
            length = (words[0] & 0xff) >> 1;
            data = object + 1;
        }
    }
    return put(out, &length, sizeof length) && put_memory(out, data, length < most ? (uint32_t)length : most, false);
}

static bool step(const struct state *state, const struct cs_capture_op *op) {
    uint8_t scratch[16];
    const uint8_t *bytes = source(state, op, scratch);
    uint64_t pointer;
    if (op->action == CS_CAPTURE_VALUE)
        return put(state->out, bytes, op->bytes);
    memcpy(&pointer, bytes, sizeof pointer);
    switch (op->action) {
    case CS_CAPTURE_MEMORY:
        return put_memory(state->out, pointer, op->bytes, false);
    case CS_CAPTURE_TEXT:
        return put(state->out, &pointer, sizeof pointer) && put_memory(state->out, pointer, op->bytes, true);
    case CS_CAPTURE_STRING:
    case CS_CAPTURE_STRING_LIBCXX:
        return put_string(state->out, pointer, op->bytes, op->action == CS_CAPTURE_STRING_LIBCXX);
    default:
        return false;
    }
}

static void collect(const struct state *state, const struct cs_capture_op *ops, uint32_t count) {
    for (uint32_t i = 0; i < count && step(state, &ops[i]); i++)
        ;
    uint32_t rest = -state->out->bytes & 7;
    memset(state->out->data + state->out->bytes, 0, rest);
    state->out->bytes += rest;
}

uint32_t *cs_reserve(uint64_t sp, uint32_t bytes, uint32_t *time) {
    for (;;) {
        struct cs_block *block = cs_self()->block;
        uint64_t at = bytes;
        __asm__ volatile("xadd %0, %1" : "+r"(at), "+m"(block->cursor) : : "memory", "cc");
        if (at >= block->end || bytes > block->limit - at) {
            cs_refill(sp);
            continue;
        }
        uint64_t now = cs_session.features & CS_FEATURE_NO_CLOCK ? (uint64_t)block->epoch << 32 : cs_now();
        uint32_t *slot = (uint32_t *)at;
        *time = (uint32_t)now;
        if (now >> 32 == block->epoch)
            return slot;
        cs_new_epoch(slot, bytes, (uint32_t)(now >> 32));
    }
}

static void put_record(uint32_t *to, uint32_t type, const struct collected *out) {
    to[0] = type;
    memcpy(to + 2, out->data, out->bytes);
}

static uint32_t record_word(const struct collected *out) {
    return (out->bytes + HEAD) / 8 << 3 | CS_EVENT_EXTENDED;
}

/* The stack of the function that has just been entered. */
static void snapshot(const struct cs_kept *frame, const struct cs_vectors *vectors, const uint64_t *place,
                     uint32_t function) {
    struct cs_registers registers;
    memset(&registers, 0, sizeof registers);
    registers.at[CS_RBX] = vectors->rbx;
    registers.at[CS_RBP] = frame->rbp;
    registers.at[CS_RSP] = (uint64_t)(place + 1);
    for (uint32_t i = 0; i < 4; i++)
        registers.at[CS_R12 + i] = vectors->r12[i];
    registers.rip = *place;
    registers.place = registers.rip - 1;
    cs_snapshot(&registers, false, function, CS_STACK_ENTRY, NULL);
}

void cs_capture_entry(const struct cs_kept *frame, const struct cs_vectors *vectors, const uint64_t *place) {
    const struct cs_capture *capture = (const struct cs_capture *)frame->capture;
    uint64_t sp = (uint64_t)place;
    if (cs_session.asks && !cs_depth_enter(sp, capture->function))
        return;
    struct collected out;
    out.bytes = 0;
    struct state state = {frame, vectors, place, &out};
    const struct cs_capture_op *ops = (const struct cs_capture_op *)(capture + 1);
    bool callers = capture->entry_count && ops->action == CS_CAPTURE_CALLERS;
    collect(&state, ops + callers, capture->entry_count - callers);
    uint32_t more = capture->entry_count > callers ? HEAD + out.bytes : 0;
    uint32_t time, *slot = cs_reserve(sp, (uint32_t)sizeof(struct cs_entry_event) + more, &time);
    /* The sizes first: what is written behind them must never be taken for events. */
    if (more)
        slot[5] = record_word(&out);
    __atomic_store_n(&slot[1], (uint32_t)sp | CS_EVENT_ENTRY, __ATOMIC_RELEASE);
    slot[0] = time;
    if (more)
        put_record(slot + 4, CS_EXTENDED_ARGUMENTS, &out);
    slot[3] = (uint32_t)*place;
    slot[2] = capture->function;
    if (callers)
        snapshot(frame, vectors, place, capture->function);
}

void cs_capture_exit(const struct cs_kept *frame, const struct cs_vectors *vectors, const uint64_t *place) {
    const struct cs_capture *capture = (const struct cs_capture *)frame->capture;
    uint64_t sp = (uint64_t)place;
    if (cs_session.asks && !cs_depth_leave(sp))
        return;
    struct collected out;
    out.bytes = 0;
    struct state state = {frame, vectors, place, &out};
    collect(&state, (const struct cs_capture_op *)(capture + 1) + capture->entry_count, capture->exit_count);
    uint32_t time, *slot = cs_reserve(sp, HEAD + out.bytes + (uint32_t)sizeof(struct cs_short_event), &time);
    __atomic_store_n(&slot[1], record_word(&out), __ATOMIC_RELEASE);
    put_record(slot, CS_EXTENDED_RESULT, &out);
    slot += (HEAD + out.bytes) / 4;
    slot[1] = (uint32_t)sp | CS_EVENT_EXIT;
    slot[0] = time;
}

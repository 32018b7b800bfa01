/* A walk that keeps all registers and looks every rule up: through signal frames, and where a rule does not fit the
 * cache or there is none. */
#include "memory.h"
#include "reach.h"
#include "system.h"
#include "tables.h"

struct state {
    struct cs_registers now;
    bool exact;
};

enum outcome { STEPPED, ENDED, BROKEN };

/* struct sigcontext behind the ucontext's flags, link and stack (arch/x86/include/uapi/asm/sigcontext.h): the places of
 * registers by DWARF's number, in words. */
#define CONTEXT_WORDS 5
static const uint8_t context_order[CS_REGISTERS] = {13, 12, 14, 11, 9, 8, 10, 15, 0, 1, 2, 3, 4, 5, 6, 7};
#define CONTEXT_RIP 16
#define CONTEXT_SEGMENTS 18
#define USER_CODE 0x33

static enum outcome through_signal(struct cs_walk *walk, struct state *state) {
    uint64_t words = state->now.at[CS_RSP] + CONTEXT_WORDS * 8;
    if (!cs_reach(walk, words) || !cs_reach(walk, words + 8 * CONTEXT_SEGMENTS) ||
        (uint16_t)cs_word_at(words + 8 * CONTEXT_SEGMENTS) != USER_CODE)
        return BROKEN;
    for (uint32_t i = 0; i < CS_REGISTERS; i++)
        state->now.at[i] = cs_word_at(words + 8ull * context_order[i]);
    state->now.rip = cs_word_at(words + 8 * CONTEXT_RIP);
    state->exact = true;
    walk->out[walk->count - 1] |= CS_STACK_EXACT; /* no call leads back to where handlers return to */
    return STEPPED;
}

/* Whether what a handler returns to lies there: mov rax, SYS_rt_sigreturn; syscall. Debuggers know it by its bytes. */
static bool is_signal_return(uint64_t address) {
    static const uint8_t code[16] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};
    return cs_system_readable(address & ~7ull) && cs_system_readable((address + 9) & ~7ull) &&
           !memcmp((const void *)address, code, 9);
}

/* Where no table tells: a chain of frame pointers, or the end of it. */
static enum outcome by_frame_pointer(struct cs_walk *walk, struct state *state) {
    uint64_t bp = state->now.at[CS_RBP], sp = state->now.at[CS_RSP];
    if (state->now.rip < CS_ADDRESS_END && is_signal_return(state->now.rip))
        return through_signal(walk, state);
    if (state->exact && cs_reach(walk, sp) && cs_unwind_find(cs_word_at(sp) - 1)) {
        /* A call through a bad pointer leads to a place with nothing on the stack but its return address. */
        state->now.rip = cs_word_at(sp);
        state->now.at[CS_RSP] = sp + 8;
        state->exact = false;
        return STEPPED;
    }
    walk->flags |= CS_STACK_GUESSED;
    if (bp < sp || bp - sp > CS_FARTHEST || bp % 8 || !cs_reach(walk, bp) || !cs_reach(walk, bp + 8))
        return BROKEN;
    state->now.at[CS_RSP] = bp + 16;
    state->now.at[CS_RBP] = cs_word_at(bp);
    state->now.rip = cs_word_at(bp + 8);
    state->exact = false;
    return state->now.rip ? STEPPED : ENDED;
}

static bool frame_of(struct cs_walk *walk, const struct cs_unwind_rule *rule, const struct state *state,
                     uint64_t *frame) {
    uint64_t place = state->now.at[rule->base % CS_REGISTERS] + (uint64_t)(int64_t)rule->offset;
    if (rule->kind == CS_UNWIND_PLT)
        *frame = state->now.at[CS_RSP] + (state->exact && (state->now.rip & 15) >= 11 ? 16 : 8);
    else if (rule->kind == CS_UNWIND_OFFSET)
        *frame = place;
    else if (cs_reach(walk, place))
        *frame = cs_word_at(place) + rule->add;
    else
        return false;
    return *frame > state->now.at[CS_RSP] && cs_reach(walk, *frame - 8);
}

static enum outcome step(struct cs_walk *walk, struct state *state) {
    static const uint8_t numbers[] = {CS_RBX, CS_RBP, CS_R12, CS_R12 + 1, CS_R12 + 2, CS_R12 + 3};
    const struct cs_unwind_rule *rule = cs_unwind_find(state->now.place);
    uint64_t frame;
    if (!rule || rule->kind == CS_UNWIND_NONE)
        return by_frame_pointer(walk, state);
    if (rule->kind == CS_UNWIND_END)
        return ENDED;
    if (rule->kind == CS_UNWIND_SIGNAL)
        return through_signal(walk, state);
    if (!frame_of(walk, rule, state, &frame))
        return BROKEN;
    uint64_t bp = state->now.at[CS_RBP];
    for (uint32_t i = 0; i < sizeof numbers; i++) {
        if (cs_is_same(rule->saved[i]))
            continue;
        uint64_t place = (rule->from_rbp >> i & 1 ? bp : frame) + (uint64_t)(int64_t)rule->saved[i];
        state->now.at[numbers[i]] = !cs_is_lost(rule->saved[i]) && cs_reach(walk, place) ? cs_word_at(place) : 0;
    }
    state->now.rip = cs_reach(walk, frame - 8) ? cs_word_at(frame - 8) : 0;
    state->now.at[CS_RSP] = frame;
    state->exact = false;
    return state->now.rip ? STEPPED : ENDED;
}

void cs_walk_slow(struct cs_walk *walk, const struct cs_registers *registers, bool exact) {
    struct state state = {*registers, exact};
    walk->count = 0;
    walk->flags = 0;
    for (;;) {
        if (walk->count == walk->limit) {
            walk->flags |= CS_STACK_LIMITED;
            return;
        }
        walk->out[walk->count++] = state.now.rip | (state.exact ? CS_STACK_EXACT : 0);
        enum outcome outcome = step(walk, &state);
        if (outcome != STEPPED) {
            walk->flags |= outcome == BROKEN ? CS_STACK_BROKEN : 0;
            return;
        }
        state.now.place = state.exact ? state.now.rip : state.now.rip - 1;
    }
}

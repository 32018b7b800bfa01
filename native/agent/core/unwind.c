/* One step outwards is a look into a small cache by address and two or three loads. What the cache cannot hold sends
 * the walk to its slow form, which keeps all registers and looks every rule up. */
#include "unwind.h"

#include "memory.h"
#include "system.h"
#include "tables.h"

#define PAGE 4096ull
#define FARTHEST 0x100000ull /* what lies so far from known parts of a stack is taken for another stack */
#define ADDRESS_END 0x800000000000ull

/* A word of the cache: address above its low 12 bits (35 bits), generation (2), then a rule in 27 bits: kind (2), frame
 * address from rbp instead of rsp (1), its offset / 8 (12), depth of the saved rbp below it / 8 or 0 (12). */
#define SLOTS 4096u
#define RULE_BITS 27
enum { KIND_EMPTY, KIND_OFFSET, KIND_END, KIND_OTHER };
#define FROM_RBP 4u
#define OFFSET_SHIFT 3
#define SAVED_SHIFT 15
#define FIELD 0xfffu

static uint64_t cache[SLOTS];

static uint64_t tag_of(uint64_t address, uint64_t generation) {
    return (address >> 12) << 2 | (generation & 3);
}

void cs_unwind_forget(void) {
    for (uint32_t i = 0; i < SLOTS; i++)
        __atomic_store_n(&cache[i], 0, __ATOMIC_RELAXED);
}

static bool is_same(int32_t saved) {
    return (uint32_t)saved == CS_UNWIND_SAME;
}

static bool is_lost(int32_t saved) {
    return (uint32_t)saved == CS_UNWIND_LOST;
}

/* The rule in 27 bits, KIND_OTHER for one that does not fit. */
static uint32_t pack(const struct cs_unwind_rule *rule) {
    if (!rule || rule->kind == CS_UNWIND_NONE)
        return KIND_OTHER;
    if (rule->kind == CS_UNWIND_END)
        return KIND_END;
    int32_t saved = rule->saved[1];
    bool from_rbp = rule->base == CS_RBP;
    if (rule->kind != CS_UNWIND_OFFSET || (!from_rbp && rule->base != CS_RSP) || rule->from_rbp & 2 ||
        rule->offset <= 0 || rule->offset % 8 || rule->offset / 8 > (int32_t)FIELD)
        return KIND_OTHER;
    if (!is_same(saved) && (is_lost(saved) || saved >= 0 || saved % 8 || saved / -8 > (int32_t)FIELD))
        return KIND_OTHER;
    uint32_t depth = is_same(saved) ? 0 : (uint32_t)(saved / -8);
    return KIND_OFFSET | (from_rbp ? FROM_RBP : 0) | (uint32_t)(rule->offset / 8) << OFFSET_SHIFT |
           depth << SAVED_SHIFT;
}

static uint32_t fill(uint64_t address, uint64_t generation) {
    uint32_t packed = pack(cs_unwind_find(address));
    if (packed != KIND_OTHER && address < ADDRESS_END)
        __atomic_store_n(&cache[address % SLOTS], tag_of(address, generation) << RULE_BITS | packed, __ATOMIC_RELAXED);
    return packed;
}

static inline uint32_t packed_rule(uint64_t address, uint64_t generation) {
    uint64_t word = __atomic_load_n(&cache[address % SLOTS], __ATOMIC_RELAXED);
    if (__builtin_expect(word >> RULE_BITS == tag_of(address, generation) && word, 1))
        return (uint32_t)word & ((1u << RULE_BITS) - 1);
    return fill(address, generation);
}

/* Make sure that the 8 bytes at `address` can be read, and remember the pages between it and what is known. */
static __attribute__((noinline)) bool explore(struct cs_walk *walk, uint64_t address) {
    uint64_t page = address & ~(PAGE - 1);
    if (address % 8 || address >= ADDRESS_END)
        return false;
    if (address >= walk->high && address - walk->high < FARTHEST) {
        for (; walk->high <= address; walk->high += PAGE)
            if (!cs_system_readable(walk->high))
                return false;
        return true;
    }
    if (address < walk->low && walk->low - address < FARTHEST) {
        for (; walk->low > address; walk->low -= PAGE)
            if (!cs_system_readable(walk->low - PAGE))
                return false;
        return true;
    }
    if (!cs_system_readable(page))
        return false;
    walk->low = page;
    walk->high = page + PAGE;
    return true;
}

static inline bool reach(struct cs_walk *walk, uint64_t address) {
    if (__builtin_expect(address - walk->low < walk->high - walk->low && !(address % 8), 1))
        return true;
    return explore(walk, address);
}

static uint64_t word_at(uint64_t address) {
    return *(const uint64_t *)address;
}

/* Whether the remembered frames from number `at` outwards are still what a walk would find. */
static bool still_there(const struct cs_remembered *last, uint32_t at) {
    uint64_t changed = 0;
    for (uint32_t i = 0; i < at; i++) {
        const struct cs_walked *frame = &last->frames[i];
        changed |= word_at(frame->sp - 8) ^ frame->rip;
        changed |= word_at(frame->saved ? frame->saved : frame->sp - 8) ^ (frame->saved ? frame->bp : frame->rip);
    }
    return !changed;
}

/* Remember the walk that ended well: `walked` frames of its own, then the first `kept` of the last one. */
static void remember(struct cs_walk *walk, uint64_t generation, uint32_t walked, uint32_t kept, uint64_t sp) {
    struct cs_remembered *last = walk->last;
    last->count = 0;
    if (walk->flags || walked > CS_REMEMBERED || sp - walk->low >= walk->high - walk->low)
        return;
    for (uint32_t i = 0; i < walked && kept < CS_REMEMBERED; i++)
        last->frames[kept++] = last->inner[walked - 1 - i];
    last->low = walk->low;
    last->high = walk->high;
    last->generation = generation;
    last->count = kept;
}

/* False: a rule needs more than rsp and rbp. */
static bool walk_fast(struct cs_walk *walk, const struct cs_registers *registers, bool exact) {
    uint64_t rip = registers->rip, sp = registers->at[CS_RSP], bp = registers->at[CS_RBP];
    uint64_t generation = cs_unwind_generation(), place = exact ? rip : rip - 1;
    uint64_t *out = walk->out, *end = walk->out + walk->limit, saved = 0;
    struct cs_remembered *last = walk->last;
    uint32_t walked = 0, candidate = 0;
    if (last && last->generation == generation && last->low >= walk->low && last->high <= walk->high)
        candidate = last->count;
    *out++ = exact ? rip | CS_STACK_EXACT : rip;
    for (;; place = rip - 1) {
        while (candidate && last->frames[candidate - 1].sp < sp)
            candidate--;
        if (candidate) {
            const struct cs_walked *frame = &last->frames[candidate - 1];
            if (frame->sp == sp && frame->rip == rip && frame->bp == bp && candidate <= (uint64_t)(end - out) &&
                still_there(last, candidate - 1)) {
                while (--candidate)
                    *out++ = last->frames[candidate - 1].rip;
                candidate = (uint32_t)(frame - last->frames) + 1;
                break;
            }
        }
        if (last && walked < CS_REMEMBERED)
            last->inner[walked] = (struct cs_walked){rip, sp, bp, saved};
        walked++;
        saved = 0;
        uint32_t rule = packed_rule(place, generation);
        if (__builtin_expect((rule & 3) != KIND_OFFSET, 0)) {
            if ((rule & 3) == KIND_OTHER)
                return false;
            candidate = 0;
            break;
        }
        uint64_t frame = (rule & FROM_RBP ? bp : sp) + 8ull * (rule >> OFFSET_SHIFT & FIELD);
        uint32_t depth = rule >> SAVED_SHIFT;
        if (__builtin_expect(frame <= sp || !reach(walk, frame - 8), 0)) {
            walk->flags |= CS_STACK_BROKEN;
            break;
        }
        if (depth) {
            if (__builtin_expect(!reach(walk, frame - 8ull * depth), 0)) {
                walk->flags |= CS_STACK_BROKEN;
                break;
            }
            saved = frame - 8ull * depth;
            bp = word_at(saved);
        }
        rip = word_at(frame - 8);
        sp = frame;
        if (!rip) {
            candidate = 0;
            break;
        }
        if (__builtin_expect(out == end, 0)) {
            walk->flags |= CS_STACK_LIMITED;
            break;
        }
        *out++ = rip;
    }
    walk->count = (uint32_t)(out - walk->out);
    if (last)
        remember(walk, generation, walked, candidate, registers->at[CS_RSP]);
    return true;
}

/* ---- The slow form */

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
    if (!reach(walk, words) || !reach(walk, words + 8 * CONTEXT_SEGMENTS) ||
        (uint16_t)word_at(words + 8 * CONTEXT_SEGMENTS) != USER_CODE)
        return BROKEN;
    for (uint32_t i = 0; i < CS_REGISTERS; i++)
        state->now.at[i] = word_at(words + 8ull * context_order[i]);
    state->now.rip = word_at(words + 8 * CONTEXT_RIP);
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
    if (state->now.rip < ADDRESS_END && is_signal_return(state->now.rip))
        return through_signal(walk, state);
    if (state->exact && reach(walk, sp) && cs_unwind_find(word_at(sp) - 1)) {
        /* A call through a bad pointer leads to a place with nothing on the stack but its return address. */
        state->now.rip = word_at(sp);
        state->now.at[CS_RSP] = sp + 8;
        state->exact = false;
        return STEPPED;
    }
    walk->flags |= CS_STACK_GUESSED;
    if (bp < sp || bp - sp > FARTHEST || bp % 8 || !reach(walk, bp) || !reach(walk, bp + 8))
        return BROKEN;
    state->now.at[CS_RSP] = bp + 16;
    state->now.at[CS_RBP] = word_at(bp);
    state->now.rip = word_at(bp + 8);
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
    else if (reach(walk, place))
        *frame = word_at(place) + rule->add;
    else
        return false;
    return *frame > state->now.at[CS_RSP] && reach(walk, *frame - 8);
}

static enum outcome step(struct cs_walk *walk, struct state *state) {
    static const uint8_t numbers[] = {CS_RBX, CS_RBP, CS_R12, CS_R12 + 1, CS_R12 + 2, CS_R12 + 3};
    const struct cs_unwind_rule *rule = cs_unwind_find(state->exact ? state->now.rip : state->now.rip - 1);
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
        if (is_same(rule->saved[i]))
            continue;
        uint64_t place = (rule->from_rbp >> i & 1 ? bp : frame) + (uint64_t)(int64_t)rule->saved[i];
        state->now.at[numbers[i]] = !is_lost(rule->saved[i]) && reach(walk, place) ? word_at(place) : 0;
    }
    state->now.rip = reach(walk, frame - 8) ? word_at(frame - 8) : 0;
    state->now.at[CS_RSP] = frame;
    state->exact = false;
    return state->now.rip ? STEPPED : ENDED;
}

static void walk_slow(struct cs_walk *walk, const struct cs_registers *registers, bool exact) {
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
    }
}

void cs_walk_stack(struct cs_walk *walk, const struct cs_registers *registers, bool exact) {
    uint64_t sp = registers->at[CS_RSP];
    walk->count = walk->flags = 0;
    if (sp - walk->low >= walk->high - walk->low)
        walk->low = walk->high = sp & ~(PAGE - 1);
    if (!walk_fast(walk, registers, exact))
        walk_slow(walk, registers, exact);
}

/* One step outwards is a look into a small cache by address and two or three loads. What the cache cannot hold sends
 * the walk to its slow form, which keeps all registers and looks every rule up. */
#include "reach.h"
#include "remembered.h"
#include "tables.h"

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
    if (!cs_is_same(saved) && (cs_is_lost(saved) || saved >= 0 || saved % 8 || saved / -8 > (int32_t)FIELD))
        return KIND_OTHER;
    uint32_t depth = cs_is_same(saved) ? 0 : (uint32_t)(saved / -8);
    return KIND_OFFSET | (from_rbp ? FROM_RBP : 0) | (uint32_t)(rule->offset / 8) << OFFSET_SHIFT |
           depth << SAVED_SHIFT;
}

static uint32_t fill(uint64_t address, uint64_t generation) {
    uint32_t packed = pack(cs_unwind_find(address));
    if (packed != KIND_OTHER && address < CS_ADDRESS_END)
        __atomic_store_n(&cache[address % SLOTS], tag_of(address, generation) << RULE_BITS | packed, __ATOMIC_RELAXED);
    return packed;
}

static inline uint32_t packed_rule(uint64_t address, uint64_t generation) {
    uint64_t word = __atomic_load_n(&cache[address % SLOTS], __ATOMIC_RELAXED);
    if (__builtin_expect(word >> RULE_BITS == tag_of(address, generation) && word, 1))
        return (uint32_t)word & ((1u << RULE_BITS) - 1);
    return fill(address, generation);
}

/* Where a walk is. */
struct position {
    uint64_t rip, sp, bp;
    uint64_t saved; /* as in struct cs_walked */
    bool from_bp;
};

enum outcome { STEPPED, ENDED, BROKEN, OTHER };

/* To the caller. `place`: an address in the code that runs. OTHER: a rule needs more than rsp and rbp. */
static inline __attribute__((always_inline)) enum outcome step(struct cs_walk *walk, struct position *now,
                                                               uint64_t place, uint64_t generation) {
    uint32_t rule = packed_rule(place, generation);
    now->from_bp = rule & FROM_RBP;
    now->saved = 0;
    if (__builtin_expect((rule & 3) != KIND_OFFSET, 0))
        return (rule & 3) == KIND_OTHER ? OTHER : ENDED;
    uint64_t frame = (rule & FROM_RBP ? now->bp : now->sp) + 8ull * (rule >> OFFSET_SHIFT & FIELD);
    uint64_t depth = rule >> SAVED_SHIFT;
    if (__builtin_expect(frame <= now->sp || !cs_reach(walk, frame - 8), 0))
        return BROKEN;
    if (depth) {
        if (__builtin_expect(!cs_reach(walk, frame - 8 * depth), 0))
            return BROKEN;
        now->saved = frame - 8 * depth;
        now->bp = cs_word_at(now->saved);
    }
    now->rip = cs_word_at(frame - 8);
    now->sp = frame;
    return now->rip ? STEPPED : ENDED;
}

/* False: a rule needs more than rsp and rbp. */
static bool walk_fast(struct cs_walk *walk, const struct cs_registers *registers, bool exact) {
    struct position now = {registers->rip, registers->at[CS_RSP], registers->at[CS_RBP], 0, false};
    uint64_t generation = cs_unwind_generation(), place = registers->place;
    for (;; place = now.rip - 1) {
        if (walk->count == walk->limit) {
            walk->flags |= CS_STACK_LIMITED;
            return true;
        }
        walk->out[walk->count] = now.rip | (exact && !walk->count ? CS_STACK_EXACT : 0);
        walk->count++;
        enum outcome outcome = step(walk, &now, place, generation);
        if (outcome == STEPPED)
            continue;
        walk->flags |= outcome == BROKEN ? CS_STACK_BROKEN : 0;
        return outcome != OTHER;
    }
}

/* Memory known to be readable is of use only where the stack pointer lies. */
static void begin(struct cs_walk *walk, uint64_t sp) {
    walk->count = walk->flags = 0;
    if (sp - walk->low >= walk->high - walk->low)
        walk->low = walk->high = sp & ~(CS_PAGE - 1);
}

void cs_walk_stack(struct cs_walk *walk, const struct cs_registers *registers, bool exact) {
    begin(walk, registers->at[CS_RSP]);
    if (!walk_fast(walk, registers, exact))
        cs_walk_slow(walk, registers, exact);
}

/* ---- With the last stack of the thread */

/* The number of frames, the outermost first, that the one at `now` begins: 0 unless it is remembered in this state, and
 * its callers are still there. `*from`: frames further in need not be looked at. */
static inline uint32_t kept(const struct cs_remembered *last, const struct position *now, uint64_t rip,
                            uint32_t *from) {
    while (*from && last->frames[*from - 1].sp < now->sp)
        --*from;
    uint32_t at = *from;
    if (!at)
        return 0;
    const struct cs_walked *frame = &last->frames[at - 1];
    if (frame->sp != now->sp || frame->rip != rip || (frame->needs_bp && frame->bp != now->bp))
        return 0;
    if (__builtin_expect(cs_still_there(last, at - 1), 1))
        return at;
    *from = cs_first_changed(last) + 1;
    return 0;
}

static struct cs_walked walked(const struct position *now, uint64_t rip) {
    return (struct cs_walked){.rip = rip, .sp = now->sp, .bp = now->bp, .saved = now->saved};
}

bool cs_recall(struct cs_remembered *last, struct cs_walk *walk, const struct cs_registers *registers, bool exact) {
    struct position now = {registers->rip, registers->at[CS_RSP], registers->at[CS_RBP], 0, false};
    uint64_t generation = cs_unwind_generation(), sp = now.sp;
    uint64_t place = registers->place, rip = exact ? now.rip | CS_STACK_EXACT : now.rip;
    uint32_t inner = 0, same = 0, from = last->count;
    begin(walk, sp);
    if (last->generation != generation || last->low < walk->low || last->high > walk->high)
        from = 0;
    for (;; rip = now.rip, place = rip - 1) {
        same = kept(last, &now, rip, &from);
        if (same)
            break;
        if (inner == CS_STACK_DEEPEST)
            return false;
        last->inner[inner++] = walked(&now, rip);
        enum outcome outcome = step(walk, &now, place, generation);
        last->inner[inner - 1].from_bp = now.from_bp;
        last->inner[inner - 1].loads_bp = now.saved;
        if (outcome == ENDED)
            break;
        if (outcome != STEPPED)
            return false;
    }
    if (same + inner > CS_STACK_DEEPEST || sp - walk->low >= walk->high - walk->low)
        return false;
    if (inner && same && last->frames[same - 1].needs_bp && last->frames[same - 1].saved != now.saved) {
        struct cs_walked frame = last->frames[same - 1];
        frame.saved = now.saved;
        cs_remember(last, same - 1, &frame); /* the same state, reached by another way */
    }
    last->kept = same;
    last->count = same + inner;
    for (uint32_t at = same; inner; at++)
        cs_remember(last, at, &last->inner[--inner]);
    last->low = walk->low;
    last->high = walk->high;
    last->generation = generation;
    return true;
}

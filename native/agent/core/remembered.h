/* What is remembered of a thread's last stack. */
#ifndef CALLSCOPE_AGENT_REMEMBERED_H
#define CALLSCOPE_AGENT_REMEMBERED_H

#include "unwind.h"

/* The last stack of a thread, the outermost frame first: most of the next one is the same. A frame that is reached in
 * the state it had then has the same callers if the words that the walk loaded from there on are the same: that takes
 * no look-up, and loads that do not wait for each other. */
struct cs_remembered {
    uint64_t generation; /* of the tables */
    uint64_t low, high;  /* where it lies */
    uint32_t count, busy;
    uint32_t kept;   /* frames of the last one that the newest began with */
    uint32_t common; /* frames that are those of the chunk's last whole stack, too */
    struct cs_walked {
        uint64_t rip; /* as it is recorded, with CS_STACK_EXACT */
        uint64_t sp, bp;
        uint64_t saved;         /* where bp was found when this frame was; 0: it did not change */
        uint32_t words, pairs;  /* how many lead from this frame to the outermost one, its own included */
        bool from_bp, loads_bp; /* how the walk went on: the frame address is taken from bp, bp is loaded */
        bool needs_bp;          /* the callers are others if bp is another */
    } frames[CS_STACK_DEEPEST], inner[CS_STACK_DEEPEST];
    /* Words that the walk loaded, those of the outermost frame first; pairs: neighbours, bp and the return address. */
    struct cs_loaded_word {
        uint64_t address, value;
    } words[2 * CS_STACK_DEEPEST];
    struct cs_loaded_pair {
        uint64_t address, unused, values[2];
    } pairs[CS_STACK_DEEPEST] __attribute__((aligned(16)));
};
/* Whether the words that lead outwards from the outermost `frames` frames are what they were. */
bool cs_still_there(const struct cs_remembered *last, uint32_t frames);
/* The outermost frame whose words are not. */
uint32_t cs_first_changed(const struct cs_remembered *last);
/* Put frame number `at` in its place, with the words that lead to it. */
void cs_remember(struct cs_remembered *last, uint32_t at, const struct cs_walked *walked);

#endif

/* Memory that a stack leads to, looked at before it is read. */
#ifndef CALLSCOPE_AGENT_REACH_H
#define CALLSCOPE_AGENT_REACH_H

#include "unwind.h"

#define CS_PAGE 4096ull
#define CS_FARTHEST 0x100000ull /* what lies so far from known parts of a stack is taken for another stack */
#define CS_ADDRESS_END 0x800000000000ull

/* Make sure that the 8 bytes at `address` can be read, and remember the pages between it and what is known. */
bool cs_explore(struct cs_walk *walk, uint64_t address);

static inline bool cs_reach(struct cs_walk *walk, uint64_t address) {
    if (__builtin_expect(address - walk->low < walk->high - walk->low && !(address % 8), 1))
        return true;
    return cs_explore(walk, address);
}

static inline uint64_t cs_word_at(uint64_t address) {
    return *(const uint64_t *)address;
}

#endif

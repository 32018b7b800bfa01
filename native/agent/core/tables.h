/* Which unwind table tells of which addresses. */
#ifndef CALLSCOPE_AGENT_TABLES_H
#define CALLSCOPE_AGENT_TABLES_H

#include "unwind.h"

/* The rule that holds at an address, or NULL. */
const struct cs_unwind_rule *cs_unwind_find(uint64_t address);
/* Counts changes of the tables: what was found out before one may not hold after it. */
extern uint64_t cs_unwind_version;
static inline uint64_t cs_unwind_generation(void) {
    return __atomic_load_n(&cs_unwind_version, __ATOMIC_ACQUIRE);
}
/* unwind.c: forget what was found out. */
void cs_unwind_forget(void);

#endif

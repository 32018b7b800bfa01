/* Walking stacks with tables compiled offline: no lock, no allocation, at any instruction of the program, of its
 * trampolines and of the agent. Nothing that a stack holds is trusted: memory is looked at before it is read. */
#ifndef CALLSCOPE_AGENT_UNWIND_H
#define CALLSCOPE_AGENT_UNWIND_H

#include "agent.h"

/* Registers by DWARF's numbers (System V ABI for x86-64, figure 3.36), and rip. */
enum { CS_RBX = 3, CS_RBP = 6, CS_RSP = 7, CS_R12 = 12, CS_REGISTERS = 16 };
struct cs_registers {
    uint64_t at[CS_REGISTERS];
    uint64_t rip;
    uint64_t place; /* the rule that holds is that of this address */
};

/* A checked unwind table in memory. */
struct cs_unwind_table {
    const struct cs_unwind_header *header;
    const struct cs_unwind_rule *rules;
    const struct cs_unwind_row *rows, *region_rows;
};

/* Check a table of `bytes` bytes for an image of `span` bytes; false when it is damaged or of another image. */
bool cs_unwind_open(struct cs_unwind_table *table, const uint8_t *file, uint64_t bytes, uint64_t span,
                    const uint8_t *build_id, uint32_t build_id_bytes);

/* The table now tells of the image at `base` and, where `region` is not 0, of its trampolines there. A table must stay
 * in memory for good: a walk may be under way. Changes are made under process->module_lock. */
bool cs_unwind_add(const struct cs_unwind_table *table, uint64_t base, uint64_t span, uint64_t region);
void cs_unwind_remove(uint64_t base, uint64_t region);

/* The rules' way to say where a register is (CS_UNWIND_SAME, CS_UNWIND_LOST). */
static inline bool cs_is_same(int32_t saved) {
    return (uint32_t)saved == CS_UNWIND_SAME;
}
static inline bool cs_is_lost(int32_t saved) {
    return (uint32_t)saved == CS_UNWIND_LOST;
}

/* A walk: where the addresses go, and what came of it (STACK_*). */
struct cs_walk {
    uint64_t *out;
    uint32_t limit, count, flags;
    uint64_t low, high; /* memory known to be readable around the stack pointer */
};
/* The callers of the place that `registers` describe, itself included. `exact`: rip is an instruction's address, else
 * where a call returns to. `place` is rip then, or an address in the call; or, where the registers are those that the
 * next instructions will have made, the address of the one behind them. */
void cs_walk_stack(struct cs_walk *walk, const struct cs_registers *registers, bool exact);
/* The same with all registers kept and every rule looked up. */
void cs_walk_slow(struct cs_walk *walk, const struct cs_registers *registers, bool exact);

struct cs_remembered;
/* Bring `last` up to date; false when this stack takes another walk, or is not whole. Then `last` is as before. */
bool cs_recall(struct cs_remembered *last, struct cs_walk *walk, const struct cs_registers *registers, bool exact);

/* ---- snapshot.c */
/* What callscope_capture keeps of its caller's registers, in the order it lies on the stack. */
struct cs_called {
    uint64_t rbx, rbp, r12[4], back;
};
/* From each system's assembler: record the stack of the function that called callscope_capture. */
void cs_captured(const struct cs_called *called, uint64_t tag);
/* Record a stack of the calling thread, or of the stopped one that owns `block` (NULL: the calling one). */
void cs_snapshot(const struct cs_registers *registers, bool exact, uint64_t tag, uint32_t cause,
                 struct cs_block *block);

/* ---- each system */
/* Whether there are tables; cs_unwind_start asks for those of all modules. */
extern bool cs_unwind_ready;
void cs_unwind_start(void);
/* A thread of this process has its block, or loses it: begin and end to capture its stack from time to time. */
void cs_sampling_begin(struct cs_block *block);
void cs_sampling_end(const struct cs_block *block);

#endif

/* A plan file in memory, checked before anything of it is used. */
#ifndef CALLSCOPE_AGENT_PLAN_H
#define CALLSCOPE_AGENT_PLAN_H

#include "agent.h"

struct cs_plan {
    const struct cs_plan_header *header;
    const struct cs_patch *patches;
    const uint32_t *fixups;
    const struct cs_text_range *texts;
    const uint8_t *chosen; /* bit map of functions, or NULL for all */
};

/* How many patches were written and how many were refused. */
struct cs_plan_outcome {
    uint32_t applied, refused;
};

/* Check a plan of `bytes` bytes for an image of `span` bytes. NULL when it can be used, else the reason. */
const char *cs_plan_open(struct cs_plan *plan, const uint8_t *file, uint64_t bytes, uint64_t span,
                         const uint8_t *build_id, uint32_t build_id_bytes);

/* Distinct pages that the chosen patches touch, for the choice between touching them and copying the whole text. */
uint64_t cs_plan_pages(const struct cs_plan *plan);

/* Move displacements of the region by -shift: it lies `shift` bytes from where it was planned. */
bool cs_plan_shift(const struct cs_plan *plan, uint8_t *region, int64_t shift);

/* Give the region's capture records the function ids of this session. False when they are damaged. */
bool cs_plan_number_captures(const struct cs_plan *plan, uint8_t *region, uint32_t id_base);

/* The agent's routines for this session, in the order of STUB_*, of the set number `set` that the system has. */
const uint64_t *cs_plan_routines(uint32_t set);

/* Write the stub page of a region. */
void cs_plan_write_stubs(uint8_t *region, uint32_t id_base, const uint64_t routines[CS_STUB_COUNT]);

/* Bit maps of functions, or NULL: whose entries are not recorded any more; of which nothing is. */
struct cs_mutes {
    uint8_t *muted, *restored;
};

/* ---- gates.c
 * Close the gates of a writable region: all of them, or those of muted functions. The rest is opened. Other threads may
 * run there. */
void cs_gates_set(const struct cs_plan *plan, uint8_t *region, bool off, const struct cs_mutes *mutes);

/* ---- restore.c
 * Give the functions in a bit map their own code again, in a writable image in which threads run, as far as that is
 * safe. */
void cs_plan_restore(const struct cs_plan *plan, uint8_t *image, int64_t shift, const uint8_t *functions);

/* Check every patch against the writable image, then write the chosen ones. NULL, or the reason why none was written.
 * `refused` is zeroed memory of a bit for every function. */
const char *cs_plan_apply(const struct cs_plan *plan, uint8_t *image, int64_t shift, uint8_t *refused,
                          struct cs_plan_outcome *outcome);

/* Write back what `cs_plan_apply` overwrote with the same shift. What has changed since is left as it is. */
void cs_plan_revert(const struct cs_plan *plan, uint8_t *image, int64_t shift);

/* The patch that holds `rva` behind its first byte, or NULL. */
const struct cs_patch *cs_plan_patch_around(const struct cs_plan *plan, uint32_t rva);

/* Where the instruction at `rva` runs now, or NULL. */
const struct cs_moved *cs_plan_moved_from(const struct cs_plan *plan, uint32_t rva);

/* The instruction that runs at `place` of the region, or NULL. */
const struct cs_moved *cs_plan_moved_to(const struct cs_plan *plan, uint32_t place);

#endif

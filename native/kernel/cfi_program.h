/* What reading entries (cfi.c) and running their instructions (cfi_program.c) share. */
#ifndef CALLSCOPE_KERNEL_CFI_PROGRAM_H
#define CALLSCOPE_KERNEL_CFI_PROGRAM_H

#include "cfi.h"
#include "dwarf_reader.h"

/* Count a trouble, and keep the first. */
static inline void cfi_report(struct cs_cfi_result *result, enum cs_cfi_status status, uint64_t offset) {
    if (result->damaged++ == 0) {
        result->status = status;
        result->error_offset = offset;
    }
}

/* No rule for the CFA, every register as the caller left it. */
void cfi_reset_row(struct cs_cfi_row *row);

/* Run the instructions between r->at and r->end, those of a common information entry, into cie->initial. Returns 0 when
 * they cannot be read. */
int cfi_run_initial(const struct cs_cfi_section *section, struct cs_cfi_cie *cie, struct reader *r);

#endif

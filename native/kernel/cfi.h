/* Call frame information (.eh_frame) compiled to flat arrays, and the landing pads of C++ exception tables.
 *
 * Sources: DWARF 5 section 6.4 and 7.24 (call frame information), LSB Core "Exception Frames" (.eh_frame, its
 * augmentations and pointer encodings), Itanium C++ ABI exception handling level II (language specific data).
 * Addresses are relative to the image's base (rva) and below 2^32. Nothing is allocated; no byte is read twice. */
#ifndef CALLSCOPE_KERNEL_CFI_H
#define CALLSCOPE_KERNEL_CFI_H

#include <stdint.h>

#include "kernel.h"

/* Which rule gives the canonical frame address (CFA) of a row. */
enum cs_cfa_kind {
    CS_CFA_UNKNOWN = 0,    /* none was given, or it does not fit */
    CS_CFA_RSP = 1,        /* rsp + offset */
    CS_CFA_RBP = 2,        /* rbp + offset */
    CS_CFA_REGISTER = 3,   /* another register, in DWARF's numbering, + offset */
    CS_CFA_EXPRESSION = 4, /* a DWARF expression */
    CS_CFA_MEMORY = 5,     /* what lies at a register + offset, + cfa_add: the expressions of realigned stacks */
};

/* Instead of an offset in cs_cfi_row.saved. */
#define CS_SAVED_SAME INT32_MIN          /* the register still holds the caller's value */
#define CS_SAVED_UNKNOWN (INT32_MIN + 1) /* undefined, in another register, or given by an expression */

/* Registers of cs_cfi_row.saved, in order. */
enum { CS_RBX, CS_RBP, CS_R12, CS_R13, CS_R14, CS_R15, CS_RETURN_ADDRESS, CS_SAVED_COUNT };

/* Holds from `rva` to the next row of the same entry, or to the entry's end. */
struct cs_cfi_row {
    uint32_t rva;
    uint8_t cfa_kind;
    uint8_t cfa_register;
    uint8_t cfa_add;
    uint8_t from_rbp; /* a bit for each of `saved`: the offset counts from rbp as it is, not from the CFA */
    int32_t cfa_offset;
    int32_t saved[CS_SAVED_COUNT]; /* the caller's value lies at CFA + this */
};

/* A common information entry. */
struct cs_cfi_cie {
    uint64_t offset; /* in the section */
    uint64_t code_align;
    int64_t data_align;
    uint64_t return_register;
    uint8_t pointer_encoding;
    uint8_t lsda_encoding;
    uint8_t has_length; /* the augmentation has a length */
    uint8_t is_signal;
    uint8_t is_damaged; /* entries that use it cannot be read */
    uint8_t reserved[3];
    struct cs_cfi_row initial; /* after its instructions; rva is 0 */
};

#define CS_FDE_SIGNAL 1u  /* a signal frame: entered by the kernel's return trampoline, not by calls */
#define CS_FDE_COLD 2u    /* its first CFA is not rsp + 8: a part of a function, reached by jumps */
#define CS_FDE_DAMAGED 4u /* its instructions cannot be read to the end; the rest of its range has no CFA */

/* A frame description entry: one run of code. */
struct cs_cfi_fde {
    uint32_t start, size;
    uint32_t lsda; /* 0: none */
    uint32_t flags;
    uint32_t first_row, row_count; /* set by cs_cfi_rows */
    uint32_t cie;                  /* index */
    uint32_t reserved;
    uint64_t instructions, instructions_end; /* offsets in the section */
};

enum cs_cfi_status {
    CS_CFI_OK = 0,
    CS_CFI_TRUNCATED = 1,   /* an entry's length runs past the section: nothing behind it was read */
    CS_CFI_BAD_CIE = 2,     /* skipped */
    CS_CFI_BAD_FDE = 3,     /* skipped */
    CS_CFI_BAD_PROGRAM = 4, /* instructions that cannot be read: CS_FDE_DAMAGED */
    CS_CFI_NO_ROOM = 5,     /* an output array is too small: a mistake of the caller */
};

struct cs_cfi_result {
    uint64_t cie_count, fde_count, row_count;
    uint64_t status;       /* the first trouble */
    uint64_t error_offset; /* of the first trouble, in the section */
    uint64_t damaged;      /* entries with trouble */
};

/* The section and what its pointers may be relative to. */
struct cs_cfi_section {
    const uint8_t *data;
    uint64_t size;
    uint64_t rva;          /* of data[0] */
    uint64_t base;         /* subtracted from absolute pointers */
    uint64_t data_base;    /* rva that DW_EH_PE_datarel counts from */
    uint64_t stop_at_zero; /* a zero length ends the section, else it is skipped */
};

/* Count the entries of each kind, decoding nothing else. */
CS_EXPORT void cs_cfi_count(const struct cs_cfi_section *section, struct cs_cfi_result *result);

/* Read the headers of all entries into `cies` and `fdes` (as many as cs_cfi_count said), in the section's order.
 * Entries that describe no code are left out. */
CS_EXPORT void cs_cfi_scan(const struct cs_cfi_section *section, struct cs_cfi_cie *cies, uint64_t cie_capacity,
                           struct cs_cfi_fde *fdes, uint64_t fde_capacity, struct cs_cfi_result *result);

/* Run the instructions of `fdes`, in the order given, and write their rows one after another; sets each entry's rows
 * and flags. An entry needs at most one row more than half its bytes of instructions. */
CS_EXPORT void cs_cfi_rows(const struct cs_cfi_section *section, const struct cs_cfi_cie *cies, uint64_t cie_count,
                           struct cs_cfi_fde *fdes, uint64_t fde_count, struct cs_cfi_row *rows, uint64_t row_capacity,
                           struct cs_cfi_result *result);

/* Landing pads of exception tables: `tables` holds `size` bytes mapped at `rva`. For each of `count` entries whose
 * table lies there, its landing pads are appended to `pads`; damaged[i] becomes 1 when the table of entry i cannot be
 * read to its end, and those found until then stay. Returns the number of pads; more than `capacity` says that only
 * `capacity` were written. Tables do not overlap in sound files: once more bytes were read than four times `size`, all
 * further tables count as damaged. */
CS_EXPORT uint64_t cs_lsda_pads(const uint8_t *tables, uint64_t size, uint64_t rva, uint64_t base,
                                const struct cs_cfi_fde *fdes, uint64_t count, uint32_t *pads, uint64_t capacity,
                                uint8_t *damaged);

#endif

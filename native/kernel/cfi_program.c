/* Runs the instructions of call frame information (DWARF 5 section 6.4.2); see cfi.h. */
#include <string.h>

#include "cfi_program.h"

enum {
    DW_CFA_advance_loc = 0x40,
    DW_CFA_offset = 0x80,
    DW_CFA_restore = 0xc0,
    DW_CFA_nop = 0x00,
    DW_CFA_set_loc = 0x01,
    DW_CFA_advance_loc1 = 0x02,
    DW_CFA_advance_loc2 = 0x03,
    DW_CFA_advance_loc4 = 0x04,
    DW_CFA_offset_extended = 0x05,
    DW_CFA_restore_extended = 0x06,
    DW_CFA_undefined = 0x07,
    DW_CFA_same_value = 0x08,
    DW_CFA_register = 0x09,
    DW_CFA_remember_state = 0x0a,
    DW_CFA_restore_state = 0x0b,
    DW_CFA_def_cfa = 0x0c,
    DW_CFA_def_cfa_register = 0x0d,
    DW_CFA_def_cfa_offset = 0x0e,
    DW_CFA_def_cfa_expression = 0x0f,
    DW_CFA_expression = 0x10,
    DW_CFA_offset_extended_sf = 0x11,
    DW_CFA_def_cfa_sf = 0x12,
    DW_CFA_def_cfa_offset_sf = 0x13,
    DW_CFA_val_offset = 0x14,
    DW_CFA_val_offset_sf = 0x15,
    DW_CFA_val_expression = 0x16,
    DW_CFA_MIPS_advance_loc8 = 0x1d,
    DW_CFA_GNU_window_save = 0x2d,
    DW_CFA_GNU_args_size = 0x2e,
    DW_CFA_GNU_negative_offset_extended = 0x2f,
};

/* Of DWARF expressions (DWARF 5 section 7.7.1). */
enum { DW_OP_deref = 0x06, DW_OP_plus_uconst = 0x23, DW_OP_breg0 = 0x70, DW_OP_breg15 = 0x7f };

/* DWARF's numbers of registers, x86-64 psABI figure "DWARF Register Number Mapping". */
enum { REGISTER_RBX = 3, REGISTER_RBP = 6, REGISTER_RSP = 7, REGISTER_R12 = 12, REGISTER_R15 = 15 };

enum { NO_REGISTER = 255, MOST_REMEMBERED = 64 };

/* Runs instructions: `row` is the state they change, `location` the rva they have come to. `remembered` is large and
 * never cleared: only its first `depth` rows mean anything. */
struct machine {
    const struct cs_cfi_section *section;
    const struct cs_cfi_cie *cie;
    struct cs_cfi_row row;
    uint64_t location;
    uint32_t depth;
    struct cs_cfi_row remembered[MOST_REMEMBERED];
};

void cfi_reset_row(struct cs_cfi_row *row) {
    memset(row, 0, sizeof *row);
    row->cfa_register = NO_REGISTER;
    for (int i = 0; i < CS_SAVED_COUNT; i++) {
        row->saved[i] = CS_SAVED_SAME;
    }
}

/* The place of a register's rule in the row, or a null pointer for registers that are not kept. */
static int32_t *saved_rule(struct cs_cfi_row *row, const struct cs_cfi_cie *cie, uint64_t reg) {
    if (reg == cie->return_register) {
        return &row->saved[CS_RETURN_ADDRESS];
    }
    if (reg == REGISTER_RBX) {
        return &row->saved[CS_RBX];
    }
    if (reg == REGISTER_RBP) {
        return &row->saved[CS_RBP];
    }
    if (reg >= REGISTER_R12 && reg <= REGISTER_R15) {
        return &row->saved[CS_R12 + (reg - REGISTER_R12)];
    }
    return 0;
}

static void set_rule(struct machine *m, uint64_t reg, int32_t rule) {
    int32_t *place = saved_rule(&m->row, m->cie, reg);
    if (place) {
        *place = rule;
        m->row.from_rbp &= (uint8_t)~(1u << (place - m->row.saved));
    }
}

static void set_offset_rule(struct machine *m, uint64_t reg, int64_t factored) {
    int64_t offset;
    int fits = !__builtin_mul_overflow(factored, m->cie->data_align, &offset) && offset > CS_SAVED_UNKNOWN &&
               offset <= INT32_MAX;
    set_rule(m, reg, fits ? (int32_t)offset : CS_SAVED_UNKNOWN);
}

static void restore_rule(struct machine *m, uint64_t reg) {
    int32_t *place = saved_rule(&m->row, m->cie, reg);
    if (place) {
        uint8_t bit = (uint8_t)(1u << (place - m->row.saved));
        *place = m->cie->initial.saved[place - m->row.saved];
        m->row.from_rbp = (uint8_t)((m->row.from_rbp & ~bit) | (m->cie->initial.from_rbp & bit));
    }
}

static void set_cfa(struct machine *m, uint64_t reg, int64_t offset) {
    int fits = reg < NO_REGISTER && offset >= INT32_MIN && offset <= INT32_MAX;
    m->row.cfa_register = reg < NO_REGISTER ? (uint8_t)reg : NO_REGISTER;
    m->row.cfa_offset = fits ? (int32_t)offset : 0;
    m->row.cfa_add = 0;
    m->row.cfa_kind = !fits                 ? CS_CFA_UNKNOWN
                      : reg == REGISTER_RSP ? CS_CFA_RSP
                      : reg == REGISTER_RBP ? CS_CFA_RBP
                                            : CS_CFA_REGISTER;
}

static int64_t factored(const struct machine *m, int64_t value) {
    int64_t product;
    return __builtin_mul_overflow(value, m->cie->data_align, &product) ? INT64_MAX : product;
}

/* A block that is an expression; `r` goes on behind it. */
static struct reader read_block(struct reader *r) {
    uint64_t length = read_uleb(r);
    struct reader block = {r->data, r->at, r->at, 0};
    reader_skip(r, length);
    block.end = r->failed ? block.at : r->at;
    return block;
}

/* A register + offset at the start of an expression. Returns 0 when it begins otherwise. */
static int read_place(struct reader *block, uint8_t *reg, int32_t *offset) {
    uint8_t op = block->at < block->end ? (uint8_t)read_unsigned(block, 1) : 0;
    int64_t value = read_sleb(block);
    if (block->failed || op < DW_OP_breg0 || op > DW_OP_breg15 || value <= CS_SAVED_UNKNOWN || value > INT32_MAX) {
        return 0;
    }
    *reg = op - DW_OP_breg0;
    *offset = (int32_t)value;
    return 1;
}

static void set_cfa_expression(struct machine *m, struct reader *r) {
    struct reader block = read_block(r);
    uint8_t reg;
    int32_t offset;
    uint64_t add = 0;
    m->row.cfa_kind = CS_CFA_EXPRESSION;
    m->row.cfa_register = NO_REGISTER;
    m->row.cfa_offset = 0;
    if (!read_place(&block, &reg, &offset) || block.at == block.end || read_unsigned(&block, 1) != DW_OP_deref) {
        return;
    }
    if (block.at < block.end && (read_unsigned(&block, 1) != DW_OP_plus_uconst || (add = read_uleb(&block)) > 255)) {
        return;
    }
    if (block.failed || block.at != block.end) {
        return;
    }
    m->row.cfa_kind = CS_CFA_MEMORY;
    m->row.cfa_register = reg;
    m->row.cfa_offset = offset;
    m->row.cfa_add = (uint8_t)add;
}

static void set_rule_expression(struct machine *m, uint64_t reg, struct reader *r) {
    struct reader block = read_block(r);
    uint8_t from;
    int32_t offset;
    set_rule(m, reg, CS_SAVED_UNKNOWN);
    if (!read_place(&block, &from, &offset) || block.at != block.end || from != REGISTER_RBP) {
        return;
    }
    int32_t *place = saved_rule(&m->row, m->cie, reg);
    if (place) {
        *place = offset;
        m->row.from_rbp |= (uint8_t)(1u << (place - m->row.saved));
    }
}

static void skip_block(struct reader *r) {
    read_block(r);
}

static int has_cfa_register(const struct machine *m) {
    return m->row.cfa_kind != CS_CFA_EXPRESSION && m->row.cfa_kind != CS_CFA_MEMORY;
}

/* Run one instruction that is not an advance. Returns 0 when it is unknown or impossible. */
static int run_rule(struct machine *m, struct reader *r, uint8_t op) {
    uint64_t reg;
    if ((op & 0xc0) == DW_CFA_offset) {
        set_offset_rule(m, op & 0x3f, (int64_t)read_uleb(r));
        return !r->failed;
    }
    if ((op & 0xc0) == DW_CFA_restore) {
        restore_rule(m, op & 0x3f);
        return 1;
    }
    switch (op) {
    case DW_CFA_nop:
    case DW_CFA_GNU_window_save:
        break;
    case DW_CFA_offset_extended:
        reg = read_uleb(r);
        set_offset_rule(m, reg, (int64_t)read_uleb(r));
        break;
    case DW_CFA_offset_extended_sf:
        reg = read_uleb(r);
        set_offset_rule(m, reg, read_sleb(r));
        break;
    case DW_CFA_GNU_negative_offset_extended:
        reg = read_uleb(r);
        set_offset_rule(m, reg, -(int64_t)(read_uleb(r) & INT64_MAX));
        break;
    case DW_CFA_restore_extended:
        restore_rule(m, read_uleb(r));
        break;
    case DW_CFA_same_value:
        set_rule(m, read_uleb(r), CS_SAVED_SAME);
        break;
    case DW_CFA_undefined:
        set_rule(m, read_uleb(r), CS_SAVED_UNKNOWN);
        break;
    case DW_CFA_register:
    case DW_CFA_val_offset:
        set_rule(m, read_uleb(r), CS_SAVED_UNKNOWN);
        read_uleb(r);
        break;
    case DW_CFA_val_offset_sf:
        set_rule(m, read_uleb(r), CS_SAVED_UNKNOWN);
        read_sleb(r);
        break;
    case DW_CFA_expression:
        reg = read_uleb(r);
        set_rule_expression(m, reg, r);
        break;
    case DW_CFA_val_expression:
        set_rule(m, read_uleb(r), CS_SAVED_UNKNOWN);
        skip_block(r);
        break;
    case DW_CFA_remember_state:
        if (m->depth == MOST_REMEMBERED) {
            return 0;
        }
        m->remembered[m->depth++] = m->row;
        break;
    case DW_CFA_restore_state:
        if (m->depth == 0) {
            return 0;
        }
        m->row = m->remembered[--m->depth];
        break;
    case DW_CFA_def_cfa:
        reg = read_uleb(r);
        set_cfa(m, reg, (int64_t)read_uleb(r));
        break;
    case DW_CFA_def_cfa_sf:
        reg = read_uleb(r);
        set_cfa(m, reg, factored(m, read_sleb(r)));
        break;
    case DW_CFA_def_cfa_register:
        if (!has_cfa_register(m)) {
            return 0;
        }
        set_cfa(m, read_uleb(r), m->row.cfa_offset);
        break;
    case DW_CFA_def_cfa_offset:
        if (!has_cfa_register(m)) {
            return 0;
        }
        set_cfa(m, m->row.cfa_register, (int64_t)read_uleb(r));
        break;
    case DW_CFA_def_cfa_offset_sf:
        if (!has_cfa_register(m)) {
            return 0;
        }
        set_cfa(m, m->row.cfa_register, factored(m, read_sleb(r)));
        break;
    case DW_CFA_def_cfa_expression:
        set_cfa_expression(m, r);
        break;
    case DW_CFA_GNU_args_size:
        read_uleb(r);
        break;
    default:
        return 0;
    }
    return !r->failed;
}

/* If `op` moves the location, do so and return 1. A move backwards (set_loc) fails. */
static int run_advance(struct machine *m, struct reader *r, uint8_t op) {
    uint64_t delta;
    struct pointer_bases bases = {m->section->rva, m->section->base, m->section->data_base, 0};
    switch ((op & 0xc0) == DW_CFA_advance_loc ? DW_CFA_advance_loc : op) {
    case DW_CFA_advance_loc:
        delta = op & 0x3f;
        break;
    case DW_CFA_advance_loc1:
        delta = read_unsigned(r, 1);
        break;
    case DW_CFA_advance_loc2:
        delta = read_unsigned(r, 2);
        break;
    case DW_CFA_advance_loc4:
        delta = read_unsigned(r, 4);
        break;
    case DW_CFA_MIPS_advance_loc8:
        delta = read_unsigned(r, 8);
        break;
    case DW_CFA_set_loc: {
        uint64_t location = read_pointer(r, m->cie->pointer_encoding, &bases);
        if (location < m->location) {
            r->failed = 1;
        } else {
            m->location = location;
        }
        return 1;
    }
    default:
        return 0;
    }
    if (__builtin_mul_overflow(delta, m->cie->code_align, &delta) ||
        __builtin_add_overflow(m->location, delta, &m->location)) {
        r->failed = 1;
    }
    return 1;
}

static int same_rules(const struct cs_cfi_row *a, const struct cs_cfi_row *b) {
    return a->cfa_kind == b->cfa_kind && a->cfa_register == b->cfa_register && a->cfa_offset == b->cfa_offset &&
           a->cfa_add == b->cfa_add && a->from_rbp == b->from_rbp && memcmp(a->saved, b->saved, sizeof a->saved) == 0;
}

/* Rows of one entry: those written so far are rows[0..count). */
struct sink {
    struct cs_cfi_row *rows;
    uint64_t count, capacity;
};

/* Write the state at `location` as a row, unless it is that of the row before. Returns 0 when there is no room. */
static int emit(struct sink *sink, const struct cs_cfi_row *row, uint64_t location) {
    if (sink->count && same_rules(&sink->rows[sink->count - 1], row)) {
        return 1;
    }
    if (sink->count == sink->capacity) {
        return 0;
    }
    sink->rows[sink->count] = *row;
    sink->rows[sink->count].rva = (uint32_t)location;
    sink->count++;
    return 1;
}

/* Rows for [fde->start, + size). Sets CS_FDE_DAMAGED; returns 0 when there is no room. */
static int run_entry(struct machine *m, const struct cs_cfi_cie *cie, struct cs_cfi_fde *fde, struct sink *sink) {
    struct reader r = {m->section->data, fde->instructions, fde->instructions_end, 0};
    uint64_t end = (uint64_t)fde->start + fde->size;
    m->cie = cie;
    m->row = cie->initial;
    m->location = fde->start;
    m->depth = 0;
    while (r.at < r.end) {
        uint64_t before = m->location;
        uint8_t op = (uint8_t)read_unsigned(&r, 1);
        int ok = run_advance(m, &r, op) ? !r.failed : run_rule(m, &r, op);
        if (!ok) {
            fde->flags |= CS_FDE_DAMAGED;
            cfi_reset_row(&m->row);
            m->location = before;
            break;
        }
        if (m->location >= end) {
            /* Rules for code behind the range would follow: they are nobody's. */
            m->location = before;
            break;
        }
        if (m->location != before && !emit(sink, &m->row, before)) {
            return 0;
        }
    }
    return emit(sink, &m->row, m->location);
}

int cfi_run_initial(const struct cs_cfi_section *section, struct cs_cfi_cie *cie, struct reader *r) {
    struct machine machine;
    machine.section = section;
    machine.cie = cie;
    machine.depth = 0;
    cfi_reset_row(&machine.row);
    while (!r->failed && r->at < r->end) {
        uint8_t op = (uint8_t)read_unsigned(r, 1);
        if (!run_rule(&machine, r, op)) {
            return 0;
        }
    }
    cie->initial = machine.row;
    return !r->failed;
}

void cs_cfi_rows(const struct cs_cfi_section *section, const struct cs_cfi_cie *cies, uint64_t cie_count,
                 struct cs_cfi_fde *fdes, uint64_t fde_count, struct cs_cfi_row *rows, uint64_t row_capacity,
                 struct cs_cfi_result *result) {
    struct machine machine;
    machine.section = section;
    memset(result, 0, sizeof *result);
    for (uint64_t i = 0; i < fde_count; i++) {
        struct cs_cfi_fde *fde = &fdes[i];
        struct sink sink = {rows + result->row_count, 0, row_capacity - result->row_count};
        if (fde->cie >= cie_count || fde->instructions > fde->instructions_end ||
            fde->instructions_end > section->size || !run_entry(&machine, &cies[fde->cie], fde, &sink)) {
            cfi_report(result, CS_CFI_NO_ROOM, fde->instructions);
            return;
        }
        const struct cs_cfi_row *first = sink.rows;
        if (fde->flags & CS_FDE_DAMAGED) {
            cfi_report(result, CS_CFI_BAD_PROGRAM, fde->instructions);
        }
        if (first->cfa_kind != CS_CFA_RSP || first->cfa_offset != 8) {
            fde->flags |= CS_FDE_COLD;
        }
        fde->first_row = (uint32_t)result->row_count;
        fde->row_count = (uint32_t)sink.count;
        result->row_count += sink.count;
        result->fde_count++;
    }
}

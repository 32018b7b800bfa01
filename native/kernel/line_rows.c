/* Line number programs (DWARF 5, section 6.2.5), as the rows that debuggers go by: where control passes to another file
 * or line, and whether a statement begins there. */
#include "dwarf_reader.h"
#include "kernel.h"
#include <stdbool.h>
#include <stdint.h>

#define STANDARD_OPCODES 12

struct cs_line_program {
    const uint8_t *bytes;
    uint64_t size;
    const uint32_t *files; /* for each file of the program a number that is the same for the same file */
    uint32_t file_count;
    uint8_t instruction_bytes, default_is_stmt, line_range, opcode_base;
    int32_t line_base;
    uint8_t operands[256]; /* of each standard opcode */
};

/* line: 0 where a sequence ends. */
struct cs_line_row {
    uint64_t address;
    uint32_t file, line, is_stmt, unused;
};

CS_EXPORT uint64_t cs_line_rows(const struct cs_line_program *program, struct cs_line_row *rows, uint64_t capacity);

struct machine {
    const struct cs_line_program *program;
    struct reader in;
    struct cs_line_row *rows;
    uint64_t count, capacity, first; /* first row of the sequence */
    uint64_t address, last_address;
    uint32_t file, line, last_file, last_line, discriminator;
    bool is_stmt, statement_here, discriminated;
};

static uint32_t file_number(const struct machine *m) {
    return m->file < m->program->file_count ? m->program->files[m->file] : UINT32_MAX;
}

static void begin_sequence(struct machine *m) {
    m->address = m->last_address = 0;
    m->file = m->line = 1;
    m->last_file = UINT32_MAX;
    m->last_line = m->discriminator = 0;
    m->is_stmt = m->program->default_is_stmt;
    m->statement_here = m->discriminated = false;
    m->first = m->count;
}

static void append(struct machine *m, uint32_t file, uint32_t line) {
    if (m->count < m->capacity)
        m->rows[m->count++] = (struct cs_line_row){m->address, file, line, m->is_stmt, 0};
    else
        m->in.failed = 1;
}

/* A row of the program. As gdb keeps them: a row that would lead to another file amidst a statement is left out, and so
 * are lines that are empty before another file's, and rows that only tell a line's parts apart. */
static void row(struct machine *m, bool ends) {
    uint32_t file = file_number(m);
    bool other_file = file != m->last_file;
    if (m->address != m->last_address)
        m->statement_here = false;
    bool ignored = !ends && (m->line == 0 || (other_file && !m->is_stmt && m->statement_here));
    if (ends || (other_file && !ignored))
        while (m->count > m->first && m->rows[m->count - 1].address == m->address)
            m->count--;
    if (ends) {
        append(m, m->last_file, 0);
    } else if (!ignored) {
        if (other_file || m->line != m->last_line || !m->discriminated)
            append(m, file, m->line);
        m->last_file = file;
        m->last_line = m->line;
    }
    m->last_address = m->address;
    m->statement_here |= m->is_stmt;
    m->discriminator = 0;
}

static void move_line(struct machine *m, int64_t by) {
    m->line += (uint32_t)by;
    if (by)
        m->discriminated = m->discriminator;
}

static void move_address(struct machine *m, uint64_t by) {
    m->address += by * m->program->instruction_bytes;
}

static void extended(struct machine *m) {
    uint64_t size = read_leb(&m->in, 0);
    uint64_t next = m->in.at + size;
    if (!size || !reader_has(&m->in, size)) {
        m->in.failed = 1;
        return;
    }
    uint64_t opcode = read_unsigned(&m->in, 1);
    if (opcode == 1) { /* DW_LNE_end_sequence */
        row(m, true);
        begin_sequence(m);
    } else if (opcode == 2) { /* DW_LNE_set_address */
        m->address = read_unsigned(&m->in, 8);
    } else if (opcode == 4) { /* DW_LNE_set_discriminator */
        m->discriminator = (uint32_t)read_leb(&m->in, 0);
        m->discriminated |= m->discriminator != 0;
    }
    m->in.at = next;
}

static void standard(struct machine *m, uint8_t opcode) {
    switch (opcode <= STANDARD_OPCODES ? opcode : 0) {
    case 1: /* DW_LNS_copy */
        row(m, false);
        break;
    case 2: /* DW_LNS_advance_pc */
        move_address(m, read_leb(&m->in, 0));
        break;
    case 3: /* DW_LNS_advance_line */
        move_line(m, (int64_t)read_leb(&m->in, 1));
        break;
    case 4: /* DW_LNS_set_file */
        m->file = (uint32_t)read_leb(&m->in, 0);
        m->discriminated = m->discriminator;
        break;
    case 6: /* DW_LNS_negate_stmt */
        m->is_stmt = !m->is_stmt;
        break;
    case 8: /* DW_LNS_const_add_pc */
        move_address(m, (uint64_t)(255 - m->program->opcode_base) / m->program->line_range);
        break;
    case 9: /* DW_LNS_fixed_advance_pc */
        m->address += read_unsigned(&m->in, 2);
        break;
    default: /* of no matter here, or unknown: skipped by its number of operands */
        for (uint32_t i = 0; i < m->program->operands[opcode]; i++)
            read_leb(&m->in, 0);
    }
}

/* The rows of all sequences, each's in order, into `rows`; their number. What cannot be read ends them. */
CS_EXPORT uint64_t cs_line_rows(const struct cs_line_program *program, struct cs_line_row *rows, uint64_t capacity) {
    struct machine m = {.program = program, .in = {program->bytes, 0, program->size, 0}};
    m.rows = rows;
    m.capacity = capacity;
    if (!program->line_range || !program->opcode_base)
        return 0;
    begin_sequence(&m);
    while (m.in.at < m.in.end && !m.in.failed) {
        uint8_t opcode = (uint8_t)read_unsigned(&m.in, 1);
        if (opcode >= program->opcode_base) {
            uint8_t adjusted = (uint8_t)(opcode - program->opcode_base);
            move_address(&m, adjusted / program->line_range);
            move_line(&m, program->line_base + adjusted % program->line_range);
            row(&m, false);
        } else if (opcode == 0) {
            extended(&m);
        } else {
            standard(&m, opcode);
        }
    }
    return m.in.failed ? m.first : m.count;
}

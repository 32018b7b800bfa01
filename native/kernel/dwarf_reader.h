/* Bounds-checked reading of DWARF's integers, LEB128 numbers and encoded pointers. A read past the end sets `failed`
 * and answers 0, and so does every read after it: callers check once, at the end of a group of reads. */
#ifndef CALLSCOPE_KERNEL_DWARF_READER_H
#define CALLSCOPE_KERNEL_DWARF_READER_H

#include <stdint.h>

struct reader {
    const uint8_t *data;
    uint64_t at, end; /* offsets in data */
    int failed;
};

/* Pointer encodings (LSB Core, "DWARF Exception Header Encoding"): format | what it is relative to. */
enum {
    DW_EH_PE_omit = 0xff,
    DW_EH_PE_indirect = 0x80,
    DW_EH_PE_format = 0x0f,
    DW_EH_PE_application = 0x70,
    DW_EH_PE_pcrel = 0x10,
    DW_EH_PE_datarel = 0x30,
    DW_EH_PE_funcrel = 0x40,
};

static inline int reader_has(struct reader *r, uint64_t bytes) {
    if (r->failed || bytes > r->end - r->at) {
        r->failed = 1;
        return 0;
    }
    return 1;
}

static inline void reader_skip(struct reader *r, uint64_t bytes) {
    if (reader_has(r, bytes)) {
        r->at += bytes;
    }
}

/* A little-endian integer of 1, 2, 4 or 8 bytes. */
static inline uint64_t read_unsigned(struct reader *r, unsigned bytes) {
    uint64_t value = 0;
    if (!reader_has(r, bytes)) {
        return 0;
    }
    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)r->data[r->at + i] << (8 * i);
    }
    r->at += bytes;
    return value;
}

static inline int64_t read_signed(struct reader *r, unsigned bytes) {
    unsigned shift = 64 - 8 * bytes;
    return (int64_t)(read_unsigned(r, bytes) << shift) >> shift;
}

/* DWARF 5 section 7.6. Bits above the 64th are dropped; more than 16 bytes of one number fail. */
static inline uint64_t read_leb(struct reader *r, int is_signed) {
    uint64_t value = 0;
    unsigned shift = 0;
    for (unsigned count = 0; count < 16 && reader_has(r, 1); count++) {
        uint8_t byte = r->data[r->at++];
        if (shift < 64) {
            value |= (uint64_t)(byte & 0x7f) << shift;
        }
        shift += 7;
        if (!(byte & 0x80)) {
            if (is_signed && (byte & 0x40) && shift < 64) {
                value |= ~(uint64_t)0 << shift;
            }
            return value;
        }
    }
    r->failed = 1;
    return 0;
}

static inline uint64_t read_uleb(struct reader *r) {
    return read_leb(r, 0);
}

static inline int64_t read_sleb(struct reader *r) {
    return (int64_t)read_leb(r, 1);
}

/* The value of an encoded pointer before anything is added to it. */
static inline uint64_t read_encoded_value(struct reader *r, uint8_t encoding) {
    switch (encoding & DW_EH_PE_format) {
    case 0x00:
    case 0x04:
    case 0x0c:
        return read_unsigned(r, 8);
    case 0x01:
        return read_uleb(r);
    case 0x02:
        return read_unsigned(r, 2);
    case 0x03:
        return read_unsigned(r, 4);
    case 0x09:
        return (uint64_t)read_sleb(r);
    case 0x0a:
        return (uint64_t)read_signed(r, 2);
    case 0x0b:
        return (uint64_t)read_signed(r, 4);
    default:
        r->failed = 1;
        return 0;
    }
}

/* What an encoded pointer may be relative to. */
struct pointer_bases {
    uint64_t rva;       /* of data[0] */
    uint64_t base;      /* subtracted from absolute pointers to make them relative */
    uint64_t data_base; /* rva for DW_EH_PE_datarel */
    uint64_t function;  /* rva for DW_EH_PE_funcrel */
};

/* The relative address an encoded pointer means. A null pointer, whatever it is relative to, gives 0. Indirect pointers
 * (their value is only in memory, once relocated) and DW_EH_PE_textrel and _aligned, which no x86-64 compiler writes
 * for code, fail. */
static inline uint64_t read_pointer(struct reader *r, uint8_t encoding, const struct pointer_bases *bases) {
    uint64_t place = bases->rva + r->at;
    uint64_t value = read_encoded_value(r, encoding);
    if (encoding & DW_EH_PE_indirect) {
        r->failed = 1;
    }
    if (r->failed || value == 0) {
        return 0;
    }
    switch (encoding & DW_EH_PE_application) {
    case 0:
        return value - bases->base;
    case DW_EH_PE_pcrel:
        return value + place;
    case DW_EH_PE_datarel:
        return value + bases->data_base;
    case DW_EH_PE_funcrel:
        return value + bases->function;
    default:
        r->failed = 1;
        return 0;
    }
}

#endif

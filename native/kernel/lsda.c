/* Landing pads of C++ exception tables; see cfi.h. */
#include "cfi.h"
#include "dwarf_reader.h"

/* The landing pads of the table at r->at, which belongs to the function at `function` (Itanium C++ ABI, "The
 * Language-Specific Data Area"). Returns 0 when it cannot be read to its end; moves r->end there. */
static int read_lsda(struct reader *r, struct pointer_bases *bases, uint64_t function, uint32_t *pads,
                     uint64_t capacity, uint64_t *count) {
    bases->function = function;
    uint8_t encoding = (uint8_t)read_unsigned(r, 1);
    uint64_t pad_base = encoding == DW_EH_PE_omit ? function : read_pointer(r, encoding, bases);
    encoding = (uint8_t)read_unsigned(r, 1);
    if (encoding != DW_EH_PE_omit) {
        read_uleb(r); /* offset of the types */
    }
    encoding = (uint8_t)read_unsigned(r, 1);
    uint64_t length = read_uleb(r);
    if (!reader_has(r, length)) {
        return 0;
    }
    r->end = r->at + length;
    while (!r->failed && r->at < r->end) {
        read_encoded_value(r, encoding); /* start and length of the call sites */
        read_encoded_value(r, encoding);
        uint64_t pad = read_encoded_value(r, encoding);
        read_uleb(r); /* action */
        if (r->failed || pad == 0) {
            continue;
        }
        if (pad_base + pad > UINT32_MAX) {
            r->failed = 1;
            continue;
        }
        if (*count < capacity) {
            pads[*count] = (uint32_t)(pad_base + pad);
        }
        ++*count;
    }
    return !r->failed;
}

uint64_t cs_lsda_pads(const uint8_t *tables, uint64_t size, uint64_t rva, uint64_t base, const struct cs_cfi_fde *fdes,
                      uint64_t count, uint32_t *pads, uint64_t capacity, uint8_t *damaged) {
    struct pointer_bases bases = {rva, base, 0, 0};
    uint64_t found = 0, budget = 4 * size;
    for (uint64_t i = 0; i < count; i++) {
        if (fdes[i].lsda < rva || fdes[i].lsda - rva >= size) {
            continue;
        }
        uint64_t start = fdes[i].lsda - rva;
        struct reader r = {tables, start, size, 0};
        if (budget == 0 || !read_lsda(&r, &bases, fdes[i].start, pads, capacity, &found)) {
            damaged[i] = 1;
        }
        budget -= budget < r.at - start ? budget : r.at - start;
    }
    return found;
}

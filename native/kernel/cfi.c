/* Finds the entries of .eh_frame and reads their headers; see cfi.h. */
#include <string.h>

#include "cfi_program.h"

/* One entry: [body, end) follows the CIE id or CIE pointer, which stands at `id_offset`. */
struct entry {
    uint64_t offset, id_offset, body, end;
    uint32_t id; /* 0: a CIE; else the distance from id_offset back to the CIE */
};

/* Find the entry at *at and move *at behind it. Returns 0 at the section's end or when lengths make no sense. */
static int next_entry(const struct cs_cfi_section *section, uint64_t *at, struct entry *entry,
                      struct cs_cfi_result *result) {
    while (section->size - *at >= 4) {
        struct reader r = {section->data, *at, section->size, 0};
        uint64_t length = read_unsigned(&r, 4);
        if (length == 0) {
            if (section->stop_at_zero) {
                return 0;
            }
            *at += 4;
            continue;
        }
        /* The 64-bit format widens the length only: in .eh_frame the id stays 4 bytes (LSB). */
        if (length == 0xffffffff) {
            length = read_unsigned(&r, 8);
        }
        if (r.failed || length > section->size - r.at || length < 4) {
            cfi_report(result, CS_CFI_TRUNCATED, *at);
            return 0;
        }
        entry->offset = *at;
        entry->id_offset = r.at;
        entry->end = r.at + length;
        entry->id = (uint32_t)read_unsigned(&r, 4);
        entry->body = r.at;
        *at = entry->end;
        return 1;
    }
    return 0;
}

void cs_cfi_count(const struct cs_cfi_section *section, struct cs_cfi_result *result) {
    struct entry entry;
    memset(result, 0, sizeof *result);
    for (uint64_t at = 0; next_entry(section, &at, &entry, result);) {
        if (entry.id == 0) {
            result->cie_count++;
        } else {
            result->fde_count++;
        }
    }
}

/* The augmentation's data, which its string describes letter by letter. Returns 0 at a letter of unknown meaning. */
static int read_augmentation(struct reader *r, const uint8_t *letter, struct cs_cfi_cie *cie) {
    for (; *letter; letter++) {
        switch (*letter) {
        case 'R':
            cie->pointer_encoding = (uint8_t)read_unsigned(r, 1);
            break;
        case 'L':
            cie->lsda_encoding = (uint8_t)read_unsigned(r, 1);
            break;
        case 'P': {
            uint8_t encoding = (uint8_t)read_unsigned(r, 1);
            if (encoding != DW_EH_PE_omit) {
                read_encoded_value(r, encoding);
            }
            break;
        }
        case 'S':
            cie->is_signal = 1;
            break;
        case 'B':
        case 'G':
            break;
        default:
            return 0;
        }
    }
    return !r->failed;
}

static int read_cie(const struct cs_cfi_section *section, const struct entry *entry, struct cs_cfi_cie *cie) {
    struct reader r = {section->data, entry->body, entry->end, 0};
    memset(cie, 0, sizeof *cie);
    cie->offset = entry->offset;
    cie->lsda_encoding = DW_EH_PE_omit;
    cfi_reset_row(&cie->initial);

    uint64_t version = read_unsigned(&r, 1);
    const uint8_t *augmentation = section->data + r.at;
    const uint8_t *nul = r.failed ? 0 : memchr(augmentation, 0, r.end - r.at);
    if (!nul || (version != 1 && version != 3 && version != 4)) {
        return 0;
    }
    reader_skip(&r, (uint64_t)(nul - augmentation) + 1);
    if (version == 4 && (read_unsigned(&r, 1) != 8 || read_unsigned(&r, 1) != 0)) {
        return 0; /* size of an address and of a segment selector */
    }
    if (augmentation[0] == 'e' && augmentation[1] == 'h' && augmentation[2] == 0) {
        reader_skip(&r, 8); /* "eh": a pointer that only GCC 2 used */
        augmentation += 2;
    }
    cie->code_align = read_uleb(&r);
    cie->data_align = read_sleb(&r);
    cie->return_register = version == 1 ? read_unsigned(&r, 1) : read_uleb(&r);
    if (augmentation[0] == 'z') {
        uint64_t length = read_uleb(&r);
        struct reader data = r;
        reader_skip(&r, length);
        data.end = r.at;
        cie->has_length = 1;
        if (r.failed || !read_augmentation(&data, augmentation + 1, cie)) {
            return 0;
        }
    } else if (augmentation[0]) {
        return 0;
    }
    return cfi_run_initial(section, cie, &r);
}

static const struct cs_cfi_cie *find_cie(const struct cs_cfi_cie *cies, uint64_t count, uint64_t offset) {
    uint64_t low = 0, high = count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (cies[middle].offset < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && cies[low].offset == offset ? &cies[low] : 0;
}

/* Returns 0 when the entry cannot be read. Its size is 0 when it describes no code. */
static int read_fde(const struct cs_cfi_section *section, const struct entry *entry, const struct cs_cfi_cie *cie,
                    struct cs_cfi_fde *fde) {
    struct reader r = {section->data, entry->body, entry->end, 0};
    struct pointer_bases bases = {section->rva, section->base, section->data_base, 0};
    memset(fde, 0, sizeof *fde);
    uint64_t start = read_pointer(&r, cie->pointer_encoding, &bases);
    uint64_t size = read_encoded_value(&r, cie->pointer_encoding & DW_EH_PE_format);
    if (cie->has_length) {
        uint64_t length = read_uleb(&r);
        struct reader data = r;
        reader_skip(&r, length);
        data.end = r.at;
        if (!r.failed && cie->lsda_encoding != DW_EH_PE_omit && length) {
            bases.function = start;
            uint64_t lsda = read_pointer(&data, cie->lsda_encoding, &bases);
            fde->lsda = data.failed || lsda > UINT32_MAX ? UINT32_MAX : (uint32_t)lsda;
        }
    }
    if (r.failed) {
        return 0;
    }
    if (start == 0 || size == 0) {
        return 1; /* its code was dropped by the linker */
    }
    if (start > UINT32_MAX || size > UINT32_MAX - start) {
        return 0;
    }
    fde->start = (uint32_t)start;
    fde->size = (uint32_t)size;
    fde->flags = cie->is_signal ? CS_FDE_SIGNAL : 0;
    fde->instructions = r.at;
    fde->instructions_end = entry->end;
    return 1;
}

void cs_cfi_scan(const struct cs_cfi_section *section, struct cs_cfi_cie *cies, uint64_t cie_capacity,
                 struct cs_cfi_fde *fdes, uint64_t fde_capacity, struct cs_cfi_result *result) {
    struct entry entry;
    struct cs_cfi_result ignored = {0};
    memset(result, 0, sizeof *result);
    for (uint64_t at = 0; next_entry(section, &at, &entry, result);) {
        if (entry.id != 0) {
            continue;
        }
        if (result->cie_count == cie_capacity) {
            cfi_report(result, CS_CFI_NO_ROOM, entry.offset);
            return;
        }
        struct cs_cfi_cie *cie = &cies[result->cie_count++];
        if (!read_cie(section, &entry, cie)) {
            cie->is_damaged = 1;
            cfi_report(result, CS_CFI_BAD_CIE, entry.offset);
        }
    }
    for (uint64_t at = 0; next_entry(section, &at, &entry, &ignored);) {
        if (entry.id == 0) {
            continue;
        }
        const struct cs_cfi_cie *cie = find_cie(cies, result->cie_count, entry.id_offset - entry.id);
        if (result->fde_count == fde_capacity) {
            cfi_report(result, CS_CFI_NO_ROOM, entry.offset);
            return;
        }
        struct cs_cfi_fde *fde = &fdes[result->fde_count];
        if (!cie || cie->is_damaged || !read_fde(section, &entry, cie, fde)) {
            cfi_report(result, CS_CFI_BAD_FDE, entry.offset);
        } else if (fde->size) {
            fde->cie = (uint32_t)(cie - cies);
            result->fde_count++;
        }
    }
}

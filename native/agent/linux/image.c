/* ELF facts from memory (System V ABI, gABI chapters 4 and 5). */
#include "image.h"

#include "../core/memory.h"
#include "syscall.h"

#define PAGE 4096ull
#define GNU_BUILD_ID_NOTE 3

static bool inside(const struct cs_image *image, uint64_t address, uint64_t bytes) {
    return address >= image->base && bytes <= image->span && address - image->base <= image->span - bytes;
}

/* Notes are two or three words, a name and a description, padded to four bytes. */
static void find_build_id(struct cs_image *image, uint64_t at, uint64_t bytes) {
    uint64_t end = at + bytes;
    while (end - at >= sizeof(Elf64_Nhdr)) {
        const Elf64_Nhdr *note = (const Elf64_Nhdr *)at;
        uint64_t name = (note->n_namesz + 3ull) & ~3ull, description = (note->n_descsz + 3ull) & ~3ull;
        at += sizeof *note;
        if (name > end - at || description > end - at - name)
            return;
        if (note->n_type == GNU_BUILD_ID_NOTE && note->n_namesz == 4 && !memcmp((const void *)at, "GNU", 4) &&
            note->n_descsz <= 32) {
            image->build_id = (const uint8_t *)(at + name);
            image->build_id_bytes = note->n_descsz;
            return;
        }
        at += name + description;
    }
}

bool cs_image_from_headers(struct cs_image *image, uint64_t bias, const Elf64_Phdr *headers, uint64_t count) {
    uint64_t low = ~0ull, high = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (headers[i].p_type != PT_LOAD || !headers[i].p_memsz)
            continue;
        if (headers[i].p_vaddr < low)
            low = headers[i].p_vaddr;
        if (headers[i].p_vaddr + headers[i].p_memsz > high)
            high = headers[i].p_vaddr + headers[i].p_memsz;
    }
    if (low >= high)
        return false;
    low &= ~(PAGE - 1);
    high = (high + PAGE - 1) & ~(PAGE - 1);
    *image = (struct cs_image){
        .bias = bias, .base = bias + low, .span = high - low, .headers = headers, .header_count = (uint32_t)count};
    for (uint64_t i = 0; i < count && !image->build_id; i++)
        if (headers[i].p_type == PT_NOTE && inside(image, bias + headers[i].p_vaddr, headers[i].p_memsz) &&
            cs_image_protection(image, headers[i].p_vaddr - low, headers[i].p_memsz) > 0)
            find_build_id(image, bias + headers[i].p_vaddr, headers[i].p_memsz);
    return true;
}

bool cs_image_from_base(struct cs_image *image, uint64_t bias) {
    unsigned char resident;
    /* An image whose first address is not 0 does not begin at its bias; there may be nothing at all. */
    if (bias & (PAGE - 1) || cs_failed(cs_call3(SYS_mincore, (long)bias, PAGE, (long)&resident)))
        return false;
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)bias;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64 ||
        header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phoff % 8 ||
        header->e_phoff > PAGE - header->e_phnum * sizeof(Elf64_Phdr))
        return false;
    return cs_image_from_headers(image, bias, (const Elf64_Phdr *)(bias + header->e_phoff), header->e_phnum);
}

int cs_image_protection(const struct cs_image *image, uint64_t rva, uint64_t bytes) {
    for (uint32_t i = 0; i < image->header_count; i++) {
        const Elf64_Phdr *header = &image->headers[i];
        uint64_t start = image->bias + header->p_vaddr - image->base, end = start + header->p_memsz;
        start &= ~(PAGE - 1);
        end = (end + PAGE - 1) & ~(PAGE - 1);
        if (header->p_type == PT_LOAD && rva >= start && rva + bytes <= end)
            return (header->p_flags & PF_R ? PROT_READ : 0) | (header->p_flags & PF_W ? PROT_WRITE : 0) |
                   (header->p_flags & PF_X ? PROT_EXEC : 0);
    }
    return -1;
}

static uint32_t gnu_hash(const char *name) {
    uint32_t hash = 5381;
    for (; *name; name++)
        hash = hash * 33 + (uint8_t)*name;
    return hash;
}

/* The tables of a dynamic section. The loader of glibc turns their offsets into addresses; others leave them. */
struct symbol_tables {
    const Elf64_Sym *symbols;
    const char *strings;
    const uint32_t *gnu;
    const uint32_t *hash;
};

static struct symbol_tables find_tables(uint64_t bias, const Elf64_Dyn *dynamic) {
    struct symbol_tables tables = {0};
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        uint64_t value = dynamic->d_un.d_ptr, address = value < bias ? value + bias : value;
        if (dynamic->d_tag == DT_SYMTAB)
            tables.symbols = (const Elf64_Sym *)address;
        else if (dynamic->d_tag == DT_STRTAB)
            tables.strings = (const char *)address;
        else if (dynamic->d_tag == DT_GNU_HASH)
            tables.gnu = (const uint32_t *)address;
        else if (dynamic->d_tag == DT_HASH)
            tables.hash = (const uint32_t *)address;
    }
    return tables;
}

static bool is_function(const struct symbol_tables *tables, uint32_t index, const char *name) {
    const Elf64_Sym *symbol = &tables->symbols[index];
    return ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && symbol->st_shndx != SHN_UNDEF &&
           cs_text_equal(tables->strings + symbol->st_name, name);
}

uint64_t cs_image_symbol(uint64_t bias, const Elf64_Dyn *dynamic, const char *name) {
    struct symbol_tables tables = find_tables(bias, dynamic);
    if (!tables.symbols || !tables.strings)
        return 0;
    if (tables.gnu) {
        /* bucket count, first symbol, bloom words, bloom shift, bloom, buckets, chain of hashes (low bit: the last). */
        uint32_t buckets = tables.gnu[0], first = tables.gnu[1], hash = gnu_hash(name);
        const uint32_t *bucket = tables.gnu + 4 + 2 * tables.gnu[2], *chain = bucket + buckets;
        if (!buckets)
            return 0;
        for (uint32_t index = bucket[hash % buckets]; index >= first && index; index++) {
            if ((chain[index - first] | 1) == (hash | 1) && is_function(&tables, index, name))
                return bias + tables.symbols[index].st_value;
            if (chain[index - first] & 1)
                return 0;
        }
    } else if (tables.hash) {
        for (uint32_t index = 1; index < tables.hash[1]; index++)
            if (is_function(&tables, index, name))
                return bias + tables.symbols[index].st_value;
    }
    return 0;
}

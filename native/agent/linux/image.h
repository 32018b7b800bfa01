/* What an image in memory says about itself: extents, build-id, dynamic symbols. No file is opened. */
#ifndef CALLSCOPE_AGENT_IMAGE_H
#define CALLSCOPE_AGENT_IMAGE_H

#include <elf.h>
#include <stdbool.h>
#include <stdint.h>

/* One loaded ELF image. */
struct cs_image {
    uint64_t bias;       /* added by the loader to the file's addresses */
    uint64_t base, span; /* page-aligned extent */
    const Elf64_Phdr *headers;
    uint32_t header_count;
    const uint8_t *build_id;
    uint32_t build_id_bytes;
};

/* Fill `image` from program headers; false when they make no sense. */
bool cs_image_from_headers(struct cs_image *image, uint64_t bias, const Elf64_Phdr *headers, uint64_t count);
/* The same from an image whose first page lies at `bias`. False when there is no ELF header. */
bool cs_image_from_base(struct cs_image *image, uint64_t bias);
/* Protection flags (PROT_*) of the segment that holds [rva, rva + bytes), or -1. */
int cs_image_protection(const struct cs_image *image, uint64_t rva, uint64_t bytes);
/* Address of a function the image exports, or 0. `dynamic` is its dynamic section. */
uint64_t cs_image_symbol(uint64_t bias, const Elf64_Dyn *dynamic, const char *name);

#endif

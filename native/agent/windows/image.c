/* Reading the headers of loaded PE images. Layouts: Microsoft's "PE Format". */
#include "image.h"

#include "../core/memory.h"

#define PAGE 4096ull
#define RSDS 0x53445352u /* a CodeView entry with GUID and age */
#define HASH_FACTOR 0x100000001b3ull

static bool inside(const struct cs_image *image, uint64_t rva, uint64_t bytes) {
    return rva < image->span && bytes <= image->span - rva;
}

uint8_t *cs_image_directory(const struct cs_image *image, uint32_t index, uint32_t *bytes) {
    const IMAGE_OPTIONAL_HEADER64 *header = &image->headers->OptionalHeader;
    const IMAGE_DATA_DIRECTORY *directory = &header->DataDirectory[index];
    if (index >= header->NumberOfRvaAndSizes || !directory->VirtualAddress || !directory->Size ||
        !inside(image, directory->VirtualAddress, directory->Size))
        return NULL;
    *bytes = directory->Size;
    return image->base + directory->VirtualAddress;
}

/* The GUID and age of the first RSDS entry, which lie together. */
static const uint8_t *debug_id(const struct cs_image *image) {
    uint32_t bytes;
    const IMAGE_DEBUG_DIRECTORY *entry = (void *)cs_image_directory(image, IMAGE_DIRECTORY_ENTRY_DEBUG, &bytes);
    for (uint32_t i = 0; entry && i < bytes / sizeof *entry; i++) {
        uint32_t signature, rva = entry[i].AddressOfRawData;
        if (entry[i].Type != IMAGE_DEBUG_TYPE_CODEVIEW || !inside(image, rva, 4 + CS_IMAGE_ID_BYTES))
            continue;
        memcpy(&signature, image->base + rva, sizeof signature);
        if (signature == RSDS)
            return image->base + rva + 4;
    }
    return NULL;
}

static void read_id(struct cs_image *image) {
    const uint8_t *found = debug_id(image);
    if (found) {
        memcpy(image->id, found, CS_IMAGE_ID_BYTES);
        return;
    }
    uint64_t hash = 0;
    uint32_t bytes = 0;
    const uint32_t *table = (void *)cs_image_directory(image, IMAGE_DIRECTORY_ENTRY_EXCEPTION, &bytes);
    for (uint32_t i = 0; table && i < bytes / sizeof *table; i++)
        hash = hash * HASH_FACTOR + table[i];
    uint32_t words[] = {image->headers->FileHeader.TimeDateStamp, image->headers->OptionalHeader.SizeOfImage,
                        image->headers->OptionalHeader.CheckSum};
    memcpy(image->id, words, sizeof words);
    memcpy(image->id + sizeof words, &hash, sizeof hash);
}

bool cs_image_read(struct cs_image *image, uint8_t *base, uint64_t span) {
    *image = (struct cs_image){.base = base, .span = (span + PAGE - 1) & ~(PAGE - 1)};
    const IMAGE_DOS_HEADER *start = (const IMAGE_DOS_HEADER *)base;
    if (span < PAGE || start->e_magic != IMAGE_DOS_SIGNATURE || start->e_lfanew < 0 ||
        !inside(image, (uint64_t)start->e_lfanew, sizeof *image->headers))
        return false;
    image->headers = (const IMAGE_NT_HEADERS64 *)(base + start->e_lfanew);
    if (image->headers->Signature != IMAGE_NT_SIGNATURE ||
        image->headers->FileHeader.Machine != IMAGE_FILE_MACHINE_AMD64 ||
        image->headers->OptionalHeader.Magic != IMAGE_NT_OPTIONAL_HDR64_MAGIC)
        return false;
    read_id(image);
    return true;
}

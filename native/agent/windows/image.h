/* What a PE image in memory says about itself. No file is opened. */
#ifndef CALLSCOPE_AGENT_IMAGE_H
#define CALLSCOPE_AGENT_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "nt.h"

#define CS_IMAGE_ID_BYTES 20u

/* One loaded image. */
struct cs_image {
    uint8_t *base;
    uint64_t span; /* in whole pages */
    const IMAGE_NT_HEADERS64 *headers;
    uint8_t id[CS_IMAGE_ID_BYTES]; /* what plans of it are known by: format/SPEC.md, "Plans of PE images" */
};

/* Fill `image` from its headers; false when they make no sense. */
bool cs_image_read(struct cs_image *image, uint8_t *base, uint64_t span);
/* A data directory's place in the image and its bytes; NULL when there is none. */
uint8_t *cs_image_directory(const struct cs_image *image, uint32_t index, uint32_t *bytes);

#endif

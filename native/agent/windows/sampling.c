/* No stacks are captured from outside on Windows. */
#include "../core/unwind.h"

void cs_sampling_begin(struct cs_block *block) {
    (void)block;
}

void cs_sampling_end(const struct cs_block *block) {
    (void)block;
}

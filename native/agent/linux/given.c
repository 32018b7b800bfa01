/* Files that a recorder opened for a process which could not: one of another user, or in a container. `cs_open` finds
 * them by the path that they would have been opened by. */
#include "../core/memory.h"
#include "linux.h"
#include "syscall.h"

#define MOST 12u
#define LONGEST 4096u

static struct {
    bool used;
    int descriptor;
    char path[LONGEST];
} files[MOST];

void cs_give(const char *path, int descriptor) {
    for (uint32_t i = 0; i < MOST; i++) {
        uint64_t at = 0;
        if (files[i].used)
            continue;
        files[i].used = cs_text_append(files[i].path, LONGEST, &at, path);
        files[i].descriptor = cs_move_descriptor(descriptor);
        if (files[i].used)
            return;
        descriptor = files[i].descriptor;
        break;
    }
    cs_close(descriptor);
}

int cs_given(const char *path) {
    for (uint32_t i = 0; i < MOST; i++)
        if (files[i].used && cs_text_equal(files[i].path, path))
            return files[i].descriptor;
    return -1;
}

void cs_give_up(const char *path) {
    for (uint32_t i = 0; i < MOST; i++)
        if (files[i].used && (!path || cs_text_equal(files[i].path, path))) {
            cs_close(files[i].descriptor);
            files[i].used = false;
        }
}

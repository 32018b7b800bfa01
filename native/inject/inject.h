/* Loading the agent into a process: used by the launcher for the program, and by the agent for the program's children.
 */
#ifndef CALLSCOPE_INJECT_H
#define CALLSCOPE_INJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "callscope/records.h"

#define CS_START_FOLLOW 1u   /* start children with the agent, too */
#define CS_START_ATTACHED 2u /* other threads of the program are running */
#define CS_LIBRARY_CHARACTERS 1024u

/* What the agent is started with: the argument of its function callscope_attach. Paths are the recorder's, in UTF-8. */
struct cs_start {
    uint32_t flags;
    uint32_t reserved;
    int64_t clock_offset_ns; /* CLOCK_REALTIME - CLOCK_MONOTONIC of the recorder */
    char session[CS_PATH_BYTES];
    char recorder[CS_PATH_BYTES]; /* directory of questions and answers */
};

/* What lies in the target: code that loads the library and calls its function, and the code's argument. */
struct cs_injection {
    uint8_t code[128];
    uint64_t load_library; /* LoadLibraryW and GetProcAddress; kernel32 lies at the same address in every process */
    uint64_t get_procedure;
    uint16_t library[CS_LIBRARY_CHARACTERS];
    char function[24];
    struct cs_start start;
};

/* Make what is to lie in the target. False when `library` is too long. */
bool cs_injection_fill(struct cs_injection *injection, const uint16_t *library, const char *function,
                       const struct cs_start *start);

#endif

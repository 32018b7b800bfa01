/* Functions of the C library that the agent stands in front of, as the loader lets preloaded libraries do. Each goes on
 * to the one that the program would have called. */
#ifndef CALLSCOPE_AGENT_INTERPOSE_H
#define CALLSCOPE_AGENT_INTERPOSE_H

#include <stdbool.h>

#define CS_INTERPOSE __attribute__((visibility("default"), used))

enum cs_next {
    CS_NEXT_SIGACTION,
    CS_NEXT_SIGNAL,
    CS_NEXT_SYSV_SIGNAL,
    CS_NEXT_SIGSET,
    CS_NEXT_SIGALTSTACK,
    CS_NEXT_EXIT,
    CS_NEXT_PTHREAD_CREATE,
    CS_NEXT_PTHREAD_SETNAME,
    CS_NEXT_PRCTL,
    CS_NEXT_COUNT
};

/* The function of that name in the libraries behind the agent, as dlsym(RTLD_NEXT) finds it; NULL: there is none. */
void *cs_next(enum cs_next which);

#endif

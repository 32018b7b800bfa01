/* While a program is being recorded, signals meant to end the recorder belong to the program. */
#define _GNU_SOURCE
#include "kernel.h"
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <unistd.h>

enum { FORWARDED = 4 };
static const int forwarded[FORWARDED] = {SIGINT, SIGQUIT, SIGTERM, SIGHUP};

static struct sigaction saved[FORWARDED];
static int replaced[FORWARDED];
static pid_t owner;                  /* this process; planning processes forked from it inherit the handlers */
static volatile sig_atomic_t target; /* 0: not started yet */
static volatile sig_atomic_t pending[FORWARDED];

/* Give the program what came before it was known. The handler may run on another thread meanwhile: whoever comes second
 * finds what the first has left. */
static void pass_on(void) {
    for (int i = 0; i < FORWARDED; i++) {
        if (__atomic_exchange_n(&pending[i], 0, __ATOMIC_SEQ_CST)) {
            kill(target, forwarded[i]);
        }
    }
}

/* What the terminal sends (SI_KERNEL) goes to its whole foreground group, the program included: once is enough. */
static void forward(int number, siginfo_t *info, void *context) {
    (void)context;
    int saved_errno = errno;
    bool from_terminal = info->si_code == SI_KERNEL;
    if (getpid() != owner) {
        if (!from_terminal) { /* somebody wants the planning process itself to end */
            signal(number, SIG_DFL);
            raise(number);
        }
    } else if (target != 0) {
        if (!from_terminal) {
            kill(target, number);
        }
    } else {
        for (int i = 0; i < FORWARDED; i++) {
            if (forwarded[i] == number) {
                __atomic_store_n(&pending[i], 1, __ATOMIC_SEQ_CST);
            }
        }
        if (__atomic_load_n(&target, __ATOMIC_SEQ_CST)) {
            pass_on();
        }
    }
    errno = saved_errno;
}

CS_EXPORT int cs_forward_begin(void);
CS_EXPORT void cs_forward_to(int pid);
CS_EXPORT void cs_forward_end(void);

/* From now on SIGINT, SIGQUIT, SIGTERM and SIGHUP do not end this process, except those it ignores anyway. The handler
 * runs on whichever thread gets the signal. exec undoes it in children. Returns 0, or 1 when the system refuses. */
CS_EXPORT int cs_forward_begin(void) {
    target = 0;
    owner = getpid();
    for (int i = 0; i < FORWARDED; i++) {
        struct sigaction action = {.sa_sigaction = forward, .sa_flags = SA_SIGINFO | SA_RESTART};
        pending[i] = replaced[i] = 0;
        if (sigaction(forwarded[i], NULL, &saved[i]) != 0) {
            return 1;
        }
        if (saved[i].sa_handler == SIG_IGN) {
            continue;
        }
        if (sigaction(forwarded[i], &action, NULL) != 0) {
            return 1;
        }
        replaced[i] = 1;
    }
    return 0;
}

/* Pass them on to the process `pid`, those that came before it was known first. */
CS_EXPORT void cs_forward_to(int pid) {
    __atomic_store_n(&target, pid, __ATOMIC_SEQ_CST);
    pass_on();
}

/* The process has ended: as before cs_forward_begin. */
CS_EXPORT void cs_forward_end(void) {
    for (int i = 0; i < FORWARDED; i++) {
        if (replaced[i]) {
            sigaction(forwarded[i], &saved[i], NULL);
            replaced[i] = 0;
        }
    }
    target = 0;
}

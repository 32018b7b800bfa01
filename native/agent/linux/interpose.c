#include "interpose.h"

#include "linux.h"

static const char *const names[CS_NEXT_COUNT] = {
    [CS_NEXT_SIGACTION] = "sigaction",
    [CS_NEXT_SIGNAL] = "signal",
    [CS_NEXT_SYSV_SIGNAL] = "sysv_signal",
    [CS_NEXT_SIGSET] = "sigset",
    [CS_NEXT_SIGALTSTACK] = "sigaltstack",
    [CS_NEXT_EXIT] = "_exit",
    [CS_NEXT_PTHREAD_CREATE] = "pthread_create",
    [CS_NEXT_PTHREAD_SETNAME] = "pthread_setname_np",
    [CS_NEXT_PRCTL] = "prctl",
};
static void *found[CS_NEXT_COUNT];

void *cs_next(enum cs_next which) {
    void *function = __atomic_load_n(&found[which], __ATOMIC_RELAXED);
    if (!function) {
        function = (void *)cs_loader_next_symbol(names[which]);
        __atomic_store_n(&found[which], function, __ATOMIC_RELAXED);
    }
    return function;
}

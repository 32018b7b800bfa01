/* A library of the host. */
#include "capture.h"

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

#define NOINLINE __attribute__((noinline))

static volatile int done;

NOINLINE static void foo_inner(uint64_t tag) {
    capture(tag);
    done++;
}

NOINLINE static void foo_outer(uint64_t tag) {
    foo_inner(tag);
    done++;
}

EXPORT void work(uint64_t tag) {
    foo_outer(tag);
    done++;
}

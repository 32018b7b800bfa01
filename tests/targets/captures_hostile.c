// Captures where things go wrong: captures_hostile MODE [LIBRARY [REPLACEMENT]]. The library calls back, for it may lie
// in a namespace of its own, where there is no callscope_capture.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noipa))

extern void callscope_capture(uint64_t tag) __attribute__((weak));

typedef void called(uint64_t tag);
typedef void caller(called *back, uint64_t tag);

static sigjmp_buf again;

static void on_overflow(int number) {
    callscope_capture((uint64_t)number);
    siglongjmp(again, 1);
}

NOINLINE static int overflow(int depth) {
    volatile char block[256];
    block[depth % 256] = 1;
    int result = overflow(depth + 1) + block[depth % 256];
    __asm__ volatile("");
    return result;
}

static void overflows(void) {
    static char alternate[1 << 16];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = on_overflow, .sa_flags = SA_ONSTACK};
    sigaction(SIGSEGV, &action, NULL);
    if (!sigsetjmp(again, 1))
        overflow(0);
    callscope_capture(1);
}

// The return address of the caller's frame, which lies just above the frame pointer's place.
__attribute__((noipa, optimize("no-omit-frame-pointer"))) static void smashed(uint64_t tag, uint64_t value) {
    volatile uint64_t *frame = __builtin_frame_address(0);
    uint64_t kept = frame[1];
    frame[1] = value;
    callscope_capture(tag);
    frame[1] = kept;
}

NOINLINE static void back(uint64_t tag) {
    callscope_capture(tag);
    __asm__ volatile("");
}

static caller *load(const char *path, int own_namespace) {
    void *library = own_namespace ? dlmopen(LM_ID_NEWLM, path, RTLD_NOW) : dlopen(path, RTLD_NOW);
    caller *entry = library ? (caller *)dlsym(library, "library_calls") : NULL;
    if (!entry) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return entry;
}

int main(int count, char **arguments) {
    const char *mode = count > 1 ? arguments[1] : "";
    if (!callscope_capture)
        return 3;
    if (!strcmp(mode, "overflow")) {
        overflows();
    } else if (!strcmp(mode, "smash")) {
        static const uint64_t values[] = {1, 0x4141414141414141, 0x7fffffffffff, ~0ull, 4096, 1ull << 63};
        for (uint64_t i = 0; i < sizeof values / sizeof *values; i++) {
            back(100 + i); // remembered: what comes next must not be taken for it
            smashed(i, values[i]);
        }
    } else if (!strcmp(mode, "namespace")) {
        load(arguments[2], 0)(back, 1);
        load(arguments[2], 1)(back, 2);
    } else if (!strcmp(mode, "replace")) {
        load(arguments[2], 0)(back, 1);
        if (count > 3)
            rename(arguments[3], arguments[2]);
        else
            unlink(arguments[2]);
    } else if (!strcmp(mode, "load")) {
        load(arguments[2], 0)(back, 1);
    }
    return 0;
}

/* What a program may say to the recording of itself: stop and go on, leave marks, name threads, capture its stack.
 *
 * Nothing has to be linked. Without a recording every call does nothing, and costs a test of a pointer. C and C++, gcc
 * and clang; all functions may be called from any thread, and from signal handlers. `callscope include-path` says where
 * this file is. */
#ifndef CALLSCOPE_H
#define CALLSCOPE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The agent's functions are looked for through the linker's table (GOT), which is the one way that works for weak
 * symbols in every sort of ELF program. In Windows programs (mingw-w64, clang) a table in a section of its own waits
 * for the agent to fill it. There is no agent for others. */
#define CALLSCOPE_INLINE static inline __attribute__((always_inline, unused, no_instrument_function)) void
#if defined(__x86_64__) && defined(__ELF__)
#define CALLSCOPE_FUNCTION(name, parameters, arguments)                                                                \
    CALLSCOPE_INLINE callscope_do_##name parameters {                                                                  \
        void(*at) parameters;                                                                                          \
        __asm__(".weak callscope_" #name "\n\tmovq callscope_" #name "@GOTPCREL(%%rip), %0" : "=r"(at));               \
        if (at)                                                                                                        \
            at arguments;                                                                                              \
    }
#elif defined(__x86_64__) && defined(_WIN32) && defined(__GNUC__)
struct callscope_table {
    uint64_t magic;
    void (*stop)(void), (*start)(void), (*pause)(void), (*resume)(void), (*marker)(const char *);
    void (*thread_name)(const char *), (*capture)(uint64_t);
    void (*hooks[2])(void *function, void *stack, void *back); /* for callscope-hooks.c */
};
static volatile struct callscope_table callscope_table
    __attribute__((section(".clscope"), used, aligned(8))) = {0x455043534c4c4143ull, 0, 0, 0, 0, 0, 0, 0, {0, 0}};
#define CALLSCOPE_FUNCTION(name, parameters, arguments)                                                                \
    CALLSCOPE_INLINE callscope_do_##name parameters {                                                                  \
        void(*at) parameters = callscope_table.name;                                                                   \
        if (at)                                                                                                        \
            at arguments;                                                                                              \
    }
#else
#define CALLSCOPE_FUNCTION(name, parameters, arguments)                                                                \
    CALLSCOPE_INLINE callscope_do_##name parameters {}
#endif

CALLSCOPE_FUNCTION(stop, (void), ())
CALLSCOPE_FUNCTION(start, (void), ())
CALLSCOPE_FUNCTION(pause, (void), ())
CALLSCOPE_FUNCTION(resume, (void), ())
CALLSCOPE_FUNCTION(marker, (const char *text), (text))
CALLSCOPE_FUNCTION(thread_name, (const char *name), (name))
CALLSCOPE_FUNCTION(capture, (uint64_t tag), (tag))

/* Stop recording in all threads of this process; go on. Calls that are open meanwhile end when that shows. */
#define callscope_stop() callscope_do_stop()
#define callscope_start() callscope_do_start()
/* The same for the calling thread; pauses may be nested. */
#define callscope_pause() callscope_do_pause()
#define callscope_resume() callscope_do_resume()
/* Write down a text (UTF-8, up to 4,000 bytes) with the time and the thread. */
#define callscope_marker(text) callscope_do_marker(text)
/* Name the calling thread; the system shows the first 15 bytes. */
#define callscope_thread_name(name) callscope_do_thread_name(name)
/* Capture the call stack; `tag` is any number. */
#define callscope_capture(tag) callscope_do_capture(tag)

/* CALLSCOPE_OFF; : nothing of the calling thread is recorded up to the end of the block, however it is left. */
static inline __attribute__((always_inline, unused, no_instrument_function)) int callscope_off_begin(void) {
    callscope_pause();
    return 0;
}

static inline __attribute__((always_inline, unused, no_instrument_function)) void callscope_off_end(const int *off) {
    (void)off;
    callscope_resume();
    __asm__ volatile(""); /* or the function would leave by a jump to it, and its end be missed */
}

#define CALLSCOPE_OFF int callscope_off __attribute__((cleanup(callscope_off_end), unused)) = callscope_off_begin()

#ifdef __cplusplus
}
#endif

#endif

/* Captures the call stack when the program is recorded, and does nothing when it is not. */
#ifndef CAPTURE_H
#define CAPTURE_H

#include <stdint.h>

#ifdef _WIN32
#include <windows.h>

static inline void capture(uint64_t tag) {
    HMODULE agent = GetModuleHandleA("callscope-agent.dll");
    void (*function)(uint64_t) = agent ? (void (*)(uint64_t))(void *)GetProcAddress(agent, "callscope_capture") : NULL;
    if (function)
        function(tag);
}
#else
extern void callscope_capture(uint64_t tag) __attribute__((weak));

static inline void capture(uint64_t tag) {
    if (callscope_capture)
        callscope_capture(tag);
}
#endif
#endif

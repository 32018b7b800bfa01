// A library that captures the stack: -DNAME=... names the function inside.
#include <stdint.h>

extern void callscope_capture(uint64_t tag) __attribute__((weak));

__attribute__((noinline)) void NAME(uint64_t tag) {
    callscope_capture(tag);
    __asm__ volatile("");
}

void library_entry(uint64_t tag) {
    NAME(tag);
    __asm__ volatile("");
}

void library_calls(void (*back)(uint64_t tag), uint64_t tag) {
    back(tag);
    __asm__ volatile("");
}

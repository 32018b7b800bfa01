#include "inject.h"

#include <stddef.h>
#include <windows.h>

extern const uint8_t cs_stub[], cs_stub_end[];

_Static_assert(offsetof(struct cs_injection, load_library) == 128 && offsetof(struct cs_injection, library) == 144 &&
                   offsetof(struct cs_injection, function) == 2192 && offsetof(struct cs_injection, start) == 2216,
               "stub.S knows these offsets");

bool cs_injection_fill(struct cs_injection *injection, const uint16_t *library, const char *function,
                       const struct cs_start *start) {
    HMODULE kernel32 = GetModuleHandleW(L"kernel32.dll");
    for (uint32_t i = 0; i < (uint32_t)(cs_stub_end - cs_stub); i++)
        injection->code[i] = cs_stub[i];
    injection->load_library = (uint64_t)GetProcAddress(kernel32, "LoadLibraryW");
    injection->get_procedure = (uint64_t)GetProcAddress(kernel32, "GetProcAddress");
    uint32_t at = 0;
    for (; (injection->library[at] = library[at]); at++)
        if (at + 1 == CS_LIBRARY_CHARACTERS)
            return false;
    for (at = 0; at < sizeof injection->function - 1 && function[at]; at++)
        injection->function[at] = function[at];
    injection->function[at] = 0;
    injection->start = *start;
    return true;
}

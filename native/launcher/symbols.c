/* Names and lines of an image's addresses, by the system's DbgHelp, for where callscope's own reader does not run.
 * Every line of standard input is a relative address in hexadecimal digits; every line of standard output answers one:
 * displacement, name, line, file, between tabs, all empty but the tabs when nothing is known. */
#include "launcher.h"

#include <dbghelp.h>

#define NAME_CHARACTERS 4096u

struct api {
    BOOL(WINAPI *initialise)(HANDLE, PCWSTR, BOOL);
    DWORD(WINAPI *set_options)(DWORD);
    DWORD64(WINAPI *load)(HANDLE, HANDLE, PCWSTR, PCWSTR, DWORD64, DWORD, PMODLOAD_DATA, DWORD);
    BOOL(WINAPI *symbol)(HANDLE, DWORD64, PDWORD64, PSYMBOL_INFOW);
    BOOL(WINAPI *line)(HANDLE, DWORD64, PDWORD, PIMAGEHLP_LINEW64);
};

static char out[4 * NAME_CHARACTERS * 2];
static uint32_t out_bytes;

static void put(const char *text, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes && out_bytes < sizeof out; i++)
        out[out_bytes++] = text[i];
}

static void put_number(uint64_t number) {
    char digits[20];
    uint32_t at = sizeof digits;
    do
        digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    put(digits + at, sizeof digits - at);
}

static void put_text(const WCHAR *text, int characters) {
    static char bytes[3 * NAME_CHARACTERS];
    int made = WideCharToMultiByte(CP_UTF8, 0, text, characters, bytes, sizeof bytes, NULL, NULL);
    for (int i = 0; i < made && bytes[i]; i++)
        put(bytes[i] == '\t' || bytes[i] == '\n' ? " " : &bytes[i], 1);
}

static bool resolve(struct api *api) {
    HMODULE library = LoadLibraryW(L"dbghelp.dll");
    static const char *const names[] = {"SymInitializeW", "SymSetOptions", "SymLoadModuleExW", "SymFromAddrW",
                                        "SymGetLineFromAddrW64"};
    void **functions = (void **)api;
    for (uint32_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!library || !(functions[i] = (void *)GetProcAddress(library, names[i])))
            return false;
    return true;
}

static void answer(const struct api *api, uint64_t base, uint64_t rva) {
    static struct {
        SYMBOL_INFOW info;
        WCHAR more[NAME_CHARACTERS];
    } symbol;
    IMAGEHLP_LINEW64 line = {.SizeOfStruct = sizeof line};
    DWORD64 beyond = 0;
    DWORD line_beyond;
    symbol.info.SizeOfStruct = sizeof symbol.info;
    symbol.info.MaxNameLen = NAME_CHARACTERS;
    out_bytes = 0;
    if (api->symbol(GetCurrentProcess(), base + rva, &beyond, &symbol.info)) {
        put_number(beyond);
        put("\t", 1);
        put_text(symbol.info.Name, (int)symbol.info.NameLen);
    } else
        put("\t", 1);
    put("\t", 1);
    bool has_line = api->line(GetCurrentProcess(), base + rva, &line_beyond, &line);
    if (has_line)
        put_number(line.LineNumber);
    put("\t", 1);
    if (has_line)
        put_text(line.FileName, -1);
    put("\n", 1);
    DWORD written;
    WriteFile(GetStdHandle(STD_OUTPUT_HANDLE), out, out_bytes, &written, NULL);
}

static void answer_all(const struct api *api, uint64_t base) {
    static char in[4096];
    uint64_t rva = 0;
    bool any = false;
    for (DWORD bytes; ReadFile(GetStdHandle(STD_INPUT_HANDLE), in, sizeof in, &bytes, NULL) && bytes;)
        for (DWORD i = 0; i < bytes; i++) {
            uint8_t digit = (uint8_t)in[i], value = digit >= 'a' ? digit - 'a' + 10 : digit - '0';
            if (digit == '\n') {
                if (any)
                    answer(api, base, rva);
                rva = any = 0;
            } else if (value < 16) {
                rva = rva << 4 | value;
                any = true;
            }
        }
}

int cs_symbols(const WCHAR *search, const WCHAR *image) {
    static struct api api;
    if (!resolve(&api))
        return cs_fail("dbghelp.dll cannot be used", NULL);
    api.set_options(SYMOPT_UNDNAME | SYMOPT_LOAD_LINES | SYMOPT_FAIL_CRITICAL_ERRORS | SYMOPT_NO_PROMPTS);
    if (!api.initialise(GetCurrentProcess(), *search ? search : NULL, FALSE))
        return cs_fail("DbgHelp does not start", NULL);
    uint64_t base = api.load(GetCurrentProcess(), NULL, cs_windows_path(image), NULL, 0, 0, NULL, 0);
    if (!base)
        return cs_fail("DbgHelp cannot read the file", image);
    answer_all(&api, base);
    return 0;
}

/* Ends of programs that no handler is told of when they begin: exceptions of languages that nobody catches, and abort,
 * which is no exception at all. */
#include "../core/exception.h"
#include "../core/memory.h"
#include "../core/system.h"
#include "windows_agent.h"

#define FATAL_APP_EXIT 0x40000015u /* STATUS_FATAL_APP_EXIT: what Windows reports an abort as */
#define MOST_FUNCTIONS 12u
#define MOST_STACK 0x10000u

typedef LONG WINAPI filter(EXCEPTION_POINTERS *pointers);
void NTAPI RtlSetUnhandledExceptionFilter(filter *function);

static filter *next_filter;

/* Code of a function: [low, high). */
struct code {
    uint64_t low, high;
};

/* In front of what Windows does, and of the filter that the program has given to it: those may go on all the same, so
 * this counts only if it is what the program ended with. */
static LONG WINAPI on_unhandled(EXCEPTION_POINTERS *pointers) {
    DWORD code = pointers->ExceptionRecord->ExceptionCode;
    if (!cs_detached && cs_crash_is_daily(code) && code != CS_GNU_THROWN)
        cs_crash_record(pointers->ExceptionRecord, pointers->ContextRecord, 0);
    return next_filter(pointers);
}

void cs_ending_watch(void) {
    filter *found = (filter *)(void *)GetProcAddress(GetModuleHandleW(L"kernel32.dll"), "UnhandledExceptionFilter");
    if (!found || next_filter)
        return;
    next_filter = found;
    RtlSetUnhandledExceptionFilter(on_unhandled);
}

static bool is_runtime(const UNICODE_STRING *name) {
    static const char *const names[] = {"msvcr", "ucrtbase"};
    for (uint32_t i = 0; i < sizeof names / sizeof *names; i++) {
        uint32_t at = 0;
        while (names[i][at] && at < name->Length / sizeof(WCHAR) && (name->Buffer[at] | 0x20) == names[i][at])
            at++;
        if (!names[i][at])
            return true;
    }
    return false;
}

/* The function that begins at `start`, by its unwind information; one without is not known. */
static struct code code_of(uint8_t *base, uint64_t span, uint64_t start) {
    struct cs_image image;
    uint32_t bytes = 0;
    if (!start || !cs_image_read(&image, base, span))
        return (struct code){0, 0};
    const RUNTIME_FUNCTION *entries =
        (const RUNTIME_FUNCTION *)cs_image_directory(&image, IMAGE_DIRECTORY_ENTRY_EXCEPTION, &bytes);
    uint64_t rva = start - (uint64_t)base;
    for (uint32_t i = 0; entries && i < bytes / sizeof *entries; i++)
        if (entries[i].BeginAddress <= rva && rva < entries[i].EndAddress)
            return (struct code){(uint64_t)base + entries[i].BeginAddress, (uint64_t)base + entries[i].EndAddress};
    return (struct code){0, 0};
}

/* The loader's lock is this thread's for good. */
static uint32_t find_aborts(struct code found[MOST_FUNCTIONS]) {
    static const char *const names[] = {"abort", "_assert", "_wassert"}; /* those of assert need not call abort */
    const struct cs_loader_data *data = (const struct cs_loader_data *)NtCurrentTeb()->ProcessEnvironmentBlock->Ldr;
    uint32_t count = 0;
    for (const LIST_ENTRY *entry = data->modules.Flink; entry != &data->modules; entry = entry->Flink) {
        const struct cs_loaded *loaded = (const struct cs_loaded *)entry;
        if (!is_runtime(&loaded->name))
            continue;
        for (uint32_t i = 0; i < sizeof names / sizeof *names && count < MOST_FUNCTIONS; i++) {
            uint64_t start = (uint64_t)(void *)GetProcAddress((HMODULE)(void *)loaded->base, names[i]);
            found[count] = code_of(loaded->base, loaded->span, start);
            count += found[count].high > 0;
        }
    }
    return count;
}

/* Whether an address lies behind a call: relative, through memory or a register (Intel SDM volume 2). */
static bool is_behind_call(uint64_t back) {
    const uint8_t *code = (const uint8_t *)back;
    return code[-5] == 0xe8 || (code[-6] == 0xff && code[-5] == 0x15) || (code[-2] == 0xff && code[-1] >> 3 == 0x1a);
}

/* Whether a call made by one of the functions has not returned. */
static bool on_stack(const struct code *functions, uint32_t count, uint64_t sp) {
    uint64_t bytes = cs_readable_bytes((const void *)sp);
    for (uint64_t at = 0; at + 8 <= bytes && at < MOST_STACK; at += 8) {
        uint64_t back = *(const uint64_t *)(sp + at);
        for (uint32_t i = 0; i < count; i++)
            if (back > functions[i].low + 6 && back <= functions[i].high && is_behind_call(back))
                return true;
    }
    return false;
}

void cs_ending_exit(void) {
    static CONTEXT context;
    static struct code aborts[MOST_FUNCTIONS]; /* not on the stack, where it would be found */
    uint32_t count = find_aborts(aborts);
    RtlCaptureContext(&context);
    if (!on_stack(aborts, count, (uint64_t)__builtin_frame_address(0)))
        return;
    EXCEPTION_RECORD exception = {.ExceptionCode = FATAL_APP_EXIT, .ExceptionAddress = (void *)context.Rip};
    cs_crash_record(&exception, &context, CS_CRASH_AT_EXIT);
}

/* Programs that unpack themselves: what will hold their code is made data until they first run it. The fault that this
 * causes comes at the program's own first instruction; then its memory is written to a file, from which the recorder
 * makes the plan. */
#include "../core/memory.h"
#include "../core/system.h"
#include "windows_agent.h"

#define RANGE_LIMIT 16u
#define EXECUTED 8 /* ExceptionInformation[0] of an access violation */
#define MEMORY_BASIC 0
#define EXECUTABLE (PAGE_EXECUTE | PAGE_EXECUTE_READ | PAGE_EXECUTE_READWRITE | PAGE_EXECUTE_WRITECOPY)

static struct {
    uint8_t *start;
    uint64_t bytes;
    ULONG protection;
} ranges[RANGE_LIMIT];
static uint32_t range_count;
static struct cs_module *waiting; /* NULL when it has unpacked itself */
static char module_path[CS_PATH_BYTES], image_path[CS_PATH_BYTES];

static bool protect(uint8_t *start, uint64_t bytes, ULONG protection, ULONG *old) {
    void *base = start;
    SIZE_T size = bytes;
    return !NtProtectVirtualMemory(CS_SELF, &base, &size, protection, old);
}

static bool in_ranges(const uint8_t *address) {
    for (uint32_t i = 0; i < range_count; i++)
        if ((uint64_t)(address - ranges[i].start) < ranges[i].bytes)
            return true;
    return false;
}

static bool is_executable(const void *address) {
    MEMORY_BASIC_INFORMATION information;
    return !NtQueryVirtualMemory(CS_SELF, address, MEMORY_BASIC, &information, sizeof information, NULL) &&
           information.State == MEM_COMMIT && information.Protect & EXECUTABLE;
}

/* Write what can be read of the image to a file of the same layout. */
static void write_image(uint8_t *base, uint64_t span) {
    HANDLE file = cs_file_open(image_path, FILE_WRITE_DATA, FILE_CREATE, 0);
    if (!file)
        return;
    for (uint64_t at = 0; at < span;) {
        IO_STATUS_BLOCK status;
        LARGE_INTEGER offset = {.QuadPart = (LONGLONG)at};
        uint64_t bytes = cs_readable_bytes(base + at);
        if (bytes > span - at)
            bytes = span - at;
        if (bytes)
            NtWriteFile(file, NULL, NULL, NULL, &status, base + at, (ULONG)bytes, &offset, NULL);
        at += bytes ? bytes : CS_PLAN_PAGE;
    }
    NtClose(file);
}

/* With the module lock held. */
static void unpacked(void) {
    struct cs_module *module = waiting;
    waiting = NULL;
    for (uint32_t i = 0; i < range_count; i++) {
        ULONG old;
        protect(ranges[i].start, ranges[i].bytes, ranges[i].protection, &old);
    }
    write_image((uint8_t *)module->base, module->span);
    cs_loader_renew(module, module_path);
}

static LONG CALLBACK on_fault(EXCEPTION_POINTERS *fault) {
    const EXCEPTION_RECORD *record = fault->ExceptionRecord;
    if (record->ExceptionCode != EXCEPTION_ACCESS_VIOLATION || record->NumberParameters < 2 ||
        record->ExceptionInformation[0] != EXECUTED || !in_ranges((uint8_t *)record->ExceptionInformation[1]))
        return EXCEPTION_CONTINUE_SEARCH;
    cs_mute();
    cs_lock(&cs_session.process->module_lock);
    if (waiting)
        unpacked();
    cs_unlock(&cs_session.process->module_lock);
    cs_unmute();
    /* Another thread may have come here while the first was at it. */
    return is_executable((void *)record->ExceptionInformation[1]) ? EXCEPTION_CONTINUE_EXECUTION
                                                                  : EXCEPTION_CONTINUE_SEARCH;
}

const char *cs_unpack_wait(struct cs_module *module, const struct cs_image *image, const char *path,
                           const char *image_file) {
    const IMAGE_SECTION_HEADER *section = IMAGE_FIRST_SECTION(image->headers);
    uint64_t entry = image->headers->OptionalHeader.AddressOfEntryPoint, at = 0;
    if (waiting || range_count)
        return "it would have to unpack itself twice";
    for (uint32_t i = 0; i < image->headers->FileHeader.NumberOfSections && range_count < RANGE_LIMIT; i++, section++) {
        uint64_t start = section->VirtualAddress, bytes = section->Misc.VirtualSize;
        if (!(section->Characteristics & IMAGE_SCN_MEM_EXECUTE) || !bytes || start >= image->span ||
            bytes > image->span - start || entry - start < bytes)
            continue;
        ranges[range_count].start = image->base + start;
        ranges[range_count++].bytes = bytes;
    }
    cs_text_append(module_path, sizeof module_path, &at, path);
    at = 0;
    cs_text_append(image_path, sizeof image_path, &at, image_file);
    if (!range_count || !RtlAddVectoredExceptionHandler(TRUE, on_fault))
        return "it cannot be told when it has unpacked itself";
    waiting = module;
    for (uint32_t i = 0; i < range_count; i++)
        if (!protect(ranges[i].start, ranges[i].bytes, PAGE_READWRITE, &ranges[i].protection))
            ranges[i].protection = PAGE_EXECUTE_READWRITE;
    return NULL;
}

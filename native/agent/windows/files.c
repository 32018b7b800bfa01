/* Files: the session's, mapped window by window, and those of the recorder. */
#include "../core/memory.h"
#include "../core/system.h"
#include "windows_agent.h"

#define PATH_CHARACTERS 2048u

#define VIEW_UNMAP 2   /* ViewUnmap: children do not inherit it */
#define MEMORY_BASIC 0 /* MemoryBasicInformation */

struct session_file {
    uint8_t *base;
    uint64_t bytes;
    HANDLE file, section;
};

static struct session_file session_files[2];
static uint32_t session_file_count;

/* One character of UTF-8; NULL at the end or when it is none. */
static const uint8_t *decode(const uint8_t *text, uint32_t *character) {
    uint32_t more = *text < 0x80 ? 0 : *text < 0xc0 ? 4 : *text < 0xe0 ? 1 : *text < 0xf0 ? 2 : *text < 0xf8 ? 3 : 4;
    if (!*text || more == 4)
        return NULL;
    *character = more ? *text & (0x3fu >> more) : *text;
    for (text++; more; more--, text++) {
        if ((*text & 0xc0) != 0x80)
            return NULL;
        *character = *character << 6 | (*text & 0x3f);
    }
    return text;
}

static uint32_t append(WCHAR *out, uint32_t at, uint32_t character) {
    if (character >= 0x10000) {
        out[at++] = (WCHAR)(0xd7c0 + (character >> 10));
        character = 0xdc00 | (character & 0x3ff);
    }
    out[at++] = (WCHAR)character;
    return at;
}

/* The native name of a file: Wine has Linux' files below \??\unix. */
static bool native_path(WCHAR out[PATH_CHARACTERS], UNICODE_STRING *name, const char *path) {
    const char *prefix = path[0] == '/' ? "\\??\\unix" : path[0] == '\\' && path[1] == '\\' ? "\\??\\UNC" : "\\??\\";
    uint32_t at = 0, character;
    while (*prefix)
        out[at++] = (WCHAR)*prefix++;
    if (path[0] == '\\')
        path++;
    const uint8_t *rest = (const uint8_t *)path, *next;
    for (; at < PATH_CHARACTERS - 2 && (next = decode(rest, &character)); rest = next)
        at = append(out, at, character == '/' ? '\\' : character);
    *name = (UNICODE_STRING){.Length = (USHORT)(at * sizeof(WCHAR)), .Buffer = out};
    name->MaximumLength = name->Length;
    return !*rest;
}

HANDLE cs_file_open(const char *path, ACCESS_MASK access, ULONG disposition, ULONG options) {
    static WCHAR text[PATH_CHARACTERS];
    static uint32_t lock;
    UNICODE_STRING name;
    IO_STATUS_BLOCK status;
    HANDLE file = NULL;
    cs_lock(&lock);
    OBJECT_ATTRIBUTES attributes = {
        .Length = sizeof attributes, .ObjectName = &name, .Attributes = OBJ_CASE_INSENSITIVE};
    if (!native_path(text, &name, path) ||
        NtCreateFile(&file, access | SYNCHRONIZE, &attributes, &status, NULL, FILE_ATTRIBUTE_NORMAL,
                     FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, disposition,
                     options | FILE_SYNCHRONOUS_IO_NONALERT | FILE_NON_DIRECTORY_FILE, NULL, 0))
        file = NULL;
    cs_unlock(&lock);
    return file;
}

uint64_t cs_file_size(HANDLE file) {
    FILE_STANDARD_INFORMATION information;
    IO_STATUS_BLOCK status;
    return NtQueryInformationFile(file, &status, &information, sizeof information, FileStandardInformation)
               ? 0
               : (uint64_t)information.EndOfFile.QuadPart;
}

bool cs_session_file(const char *name, uint64_t address, uint64_t *bytes) {
    static char path[CS_PATH_BYTES + 16];
    struct session_file *file = &session_files[session_file_count];
    uint64_t at = 0;
    if (!cs_text_append(path, sizeof path, &at, cs_start_options.session) ||
        !cs_text_append(path, sizeof path, &at, name))
        return false;
    *file = (struct session_file){.base = (uint8_t *)address};
    file->file = cs_file_open(path, FILE_READ_DATA | FILE_WRITE_DATA | FILE_READ_ATTRIBUTES, FILE_OPEN, 0);
    if (!file->file)
        return false;
    file->bytes = *bytes = cs_file_size(file->file) & ~4095ull;
    if (NtCreateSection(&file->section, SECTION_MAP_READ | SECTION_MAP_WRITE, NULL, NULL, PAGE_READWRITE, SEC_COMMIT,
                        file->file)) {
        NtClose(file->file);
        return false;
    }
    session_file_count++;
    return true;
}

void cs_session_files_close(void) {
    while (session_file_count) {
        struct session_file *file = &session_files[--session_file_count];
        NtClose(file->section);
        NtClose(file->file);
    }
}

void cs_session_file_unmap(const struct cs_shared_file *file) {
    for (uint64_t window = 0; file->base && window * file->window < file->bytes; window++)
        if (file->opened[window / 64] >> window % 64 & 1)
            NtUnmapViewOfSection(CS_SELF, file->base + window * file->window);
}

uint64_t cs_session_disk_free(void) {
    FILE_FS_SIZE_INFORMATION information;
    IO_STATUS_BLOCK status;
    if (NtQueryVolumeInformationFile(session_files[0].file, &status, &information, sizeof information,
                                     FileFsSizeInformation))
        return ~0ull;
    return (uint64_t)information.AvailableAllocationUnits.QuadPart * information.SectorsPerAllocationUnit *
           information.BytesPerSector;
}

/* Whether a window of the file lies there already: another thread may have been faster. */
static bool is_view(const uint8_t *start) {
    MEMORY_BASIC_INFORMATION information;
    return !NtQueryVirtualMemory(CS_SELF, start, MEMORY_BASIC, &information, sizeof information, NULL) &&
           information.State == MEM_COMMIT && information.Type == MEM_MAPPED && information.AllocationBase == start;
}

bool cs_system_open_range(void *start, size_t bytes) {
    for (uint32_t i = 0; i < session_file_count; i++) {
        const struct session_file *file = &session_files[i];
        uint64_t offset = (uint64_t)((uint8_t *)start - file->base);
        if ((uint8_t *)start < file->base || offset >= file->bytes)
            continue;
        LARGE_INTEGER at = {.QuadPart = (LONGLONG)offset};
        void *place = start;
        SIZE_T size = bytes;
        return !NtMapViewOfSection(file->section, CS_SELF, &place, 0, 0, &at, &size, VIEW_UNMAP, 0, PAGE_READWRITE) ||
               is_view(start);
    }
    return false;
}

uint8_t *cs_file_view(const char *path, uint64_t *bytes) {
    HANDLE section = NULL, file = cs_file_open(path, FILE_READ_DATA | FILE_READ_ATTRIBUTES, FILE_OPEN, 0);
    if (!file)
        return NULL;
    void *base = NULL;
    SIZE_T size = 0;
    *bytes = cs_file_size(file);
    if (!NtCreateSection(&section, SECTION_MAP_READ, NULL, NULL, PAGE_READONLY, SEC_COMMIT, file)) {
        if (NtMapViewOfSection(section, CS_SELF, &base, 0, 0, NULL, &size, VIEW_UNMAP, 0, PAGE_READONLY))
            base = NULL;
        NtClose(section);
    }
    NtClose(file);
    return base;
}

void cs_file_unview(const uint8_t *view) {
    if (view)
        NtUnmapViewOfSection(CS_SELF, (void *)view);
}

uint8_t *cs_system_view(const char *path, uint64_t *bytes) {
    return cs_file_view(path, bytes);
}

void cs_system_unview(uint8_t *view, uint64_t bytes) {
    (void)bytes;
    cs_file_unview(view);
}

void cs_text_of(const UNICODE_STRING *text, char *out, uint64_t bytes) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < text->Length / sizeof(WCHAR) && at + 5 < bytes; i++) {
        uint32_t character = text->Buffer[i];
        if ((character & 0xfc00) == 0xd800 && i + 1 < text->Length / sizeof(WCHAR))
            character = 0x10000 + ((character & 0x3ff) << 10) + (text->Buffer[++i] & 0x3ff);
        if (character < 0x80) {
            out[at++] = (char)character;
            continue;
        }
        uint32_t more = character < 0x800 ? 1 : character < 0x10000 ? 2 : 3;
        out[at++] = (char)(0xff00u >> (more + 1) | character >> 6 * more);
        while (more--)
            out[at++] = (char)(0x80 | (character >> 6 * more & 0x3f));
    }
    out[at] = 0;
}

void cs_path_of(const UNICODE_STRING *path, char *out, uint64_t bytes) {
    static char *(CDECL *
                  to_unix)(const WCHAR *); /* Wine's kernel32 alone has it; the result is of the process's heap */
    static bool looked;
    if (!looked) {
        to_unix = (void *)GetProcAddress(GetModuleHandleW(L"kernel32.dll"), "wine_get_unix_file_name");
        looked = true;
    }
    char *found = to_unix && path->Length ? to_unix(path->Buffer) : NULL;
    uint64_t at = 0;
    if (found) {
        cs_text_append(out, bytes, &at, found);
        HeapFree(GetProcessHeap(), 0, found);
    } else
        cs_text_of(path, out, bytes);
}

/* callscope.h in Windows programs: nothing can be weak there, so each file that includes it has a table for the agent
 * to fill, in a section by whose name the tables are found. */
#include "../core/api.h"

#include "../core/memory.h"
#include "windows_agent.h"

#define SECTION ".clscope"
#define TABLE_MAGIC 0x455043534c4c4143ull /* "CALLSCPE" */
#define THREAD_NAME 38                    /* ThreadNameInformation */
#define NAME_LIMIT 256u

/* struct callscope_table of callscope.h. */
struct table {
    uint64_t magic;
    void *functions[9];
};

/* From callscope-hooks.c. */
static void hook_enter(uint64_t function, uint64_t sp, uint64_t back) {
    if (cs_hooks)
        cs_hook(function, sp, back, CS_EXTENDED_INLINE_ENTRY);
}

static void hook_exit(uint64_t function, uint64_t sp, uint64_t back) {
    if (cs_hooks)
        cs_hook(function, sp, back, CS_EXTENDED_INLINE_EXIT);
}

static void fill(struct table *table, bool on) {
    void *const functions[] = {callscope_stop,    callscope_start,  callscope_pause,
                               callscope_resume,  callscope_marker, callscope_thread_name,
                               callscope_capture, hook_enter,       hook_exit};
    for (uint32_t i = 0; i < sizeof functions / sizeof *functions; i++)
        __atomic_store_n(&table->functions[i], on ? functions[i] : NULL, __ATOMIC_RELEASE);
}

void cs_api_offer(const struct cs_image *image, bool on) {
    const IMAGE_SECTION_HEADER *section = IMAGE_FIRST_SECTION(image->headers);
    uint64_t headers = (uint64_t)((const uint8_t *)section - image->base);
    for (uint32_t i = 0; i < image->headers->FileHeader.NumberOfSections; i++, section++) {
        headers += sizeof *section;
        uint64_t start = section->VirtualAddress, bytes = section->Misc.VirtualSize;
        if (headers > image->span)
            return;
        if (memcmp(section->Name, SECTION, sizeof section->Name) || start % 8 || start > image->span ||
            bytes > image->span - start || !(section->Characteristics & IMAGE_SCN_MEM_WRITE))
            continue;
        for (uint64_t at = 0; at + sizeof(struct table) <= bytes; at += 8) {
            struct table *table = (struct table *)(image->base + start + at);
            if (table->magic == TABLE_MAGIC)
                fill(table, on);
        }
    }
}

void callscope_thread_name(const char *name) {
    WCHAR text[NAME_LIMIT];
    ULONG bytes = 0;
    if (!cs_session.events || !name || RtlUTF8ToUnicodeN(text, sizeof text, &bytes, name, (ULONG)cs_text_length(name)))
        return;
    UNICODE_STRING given = {(USHORT)bytes, (USHORT)bytes, text};
    NtSetInformationThread(CS_SELF_THREAD, (THREADINFOCLASS)THREAD_NAME, &given, sizeof given);
    struct cs_block *block = cs_thread_block();
    if (block)
        cs_thread_follow_name(block);
}

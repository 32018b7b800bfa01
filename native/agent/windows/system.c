/* core/system.h for Windows. */
#include "../core/system.h"

#include "../core/agent.h"
#include "../core/memory.h"
#include "windows_agent.h"

#define MEMORY_BASIC 0 /* MemoryBasicInformation */
#define READABLE                                                                                                       \
    (PAGE_READONLY | PAGE_READWRITE | PAGE_WRITECOPY | PAGE_EXECUTE_READ | PAGE_EXECUTE_READWRITE |                    \
     PAGE_EXECUTE_WRITECOPY)
#define THREAD_NAME 38                     /* ThreadNameInformation */
#define TICKS_TO_1970 116444736000000000ll /* of 100 ns, from 1601 */
#define DISK_CHECK_BYTES 0x1000000ull      /* so much is written between looks at the disk's free space */
#define DISK_RESERVE 0x4000000ull
#define THREAD_SLOTS (sizeof(struct cs_thread) / sizeof(void *))

uint32_t cs_slots_offset;
bool cs_slots_wide;
static HANDLE heap; /* the process's; kernel32 is not asked later: it may be traced */

/* Take neighbouring slots of one array: those taken on the way are given back. */
bool cs_slots_take(void) {
    static uint32_t taken[CS_TEB_SLOT_COUNT + CS_EXPANSION_SLOT_COUNT];
    uint32_t count = 0, run = 0;
    while (run < THREAD_SLOTS && count < sizeof taken / sizeof *taken) {
        uint32_t slot = TlsAlloc();
        if (slot == TLS_OUT_OF_INDEXES)
            break;
        run = run && slot == taken[count - 1] + 1 && slot != CS_TEB_SLOT_COUNT ? run + 1 : 1;
        taken[count++] = slot;
    }
    heap = GetProcessHeap();
    bool found = run == THREAD_SLOTS;
    for (uint32_t i = 0; i < count - (found ? run : 0); i++)
        TlsFree(taken[i]);
    if (!found)
        return false;
    uint32_t first_slot = taken[count - run];
    cs_slots_wide = first_slot >= CS_TEB_SLOT_COUNT;
    cs_slots_offset = cs_slots_wide ? (first_slot - CS_TEB_SLOT_COUNT) * 8 : CS_TEB_SLOTS + first_slot * 8;
    return true;
}

const struct cs_thread *cs_thread_of(const uint8_t *environment) {
    if (cs_slots_wide)
        environment = *(uint8_t *const *)(environment + CS_TEB_EXPANSION_SLOTS);
    return environment ? (const struct cs_thread *)(environment + cs_slots_offset) : NULL;
}

struct cs_thread *cs_self(void) {
    uint8_t *environment = (uint8_t *)NtCurrentTeb();
    if (cs_slots_wide) {
        uint8_t **expansion = (uint8_t **)(environment + CS_TEB_EXPANSION_SLOTS);
        if (!*expansion) /* made as TlsSetValue makes it; the end of the thread frees it */
            *expansion = RtlAllocateHeap(heap, HEAP_ZERO_MEMORY, CS_EXPANSION_SLOT_COUNT * sizeof(void *));
        environment = *expansion;
    }
    struct cs_thread *self = (struct cs_thread *)(environment + cs_slots_offset);
    if (!self->block)
        self->block = &cs_no_block;
    return self;
}

int64_t cs_system_thread_place(void) {
    return 0;
}

/* Nothing interrupts a thread and runs traced code on it, but the sampler stops it and writes for it. */
uint64_t cs_system_block_signals(void) {
    return cs_self()->held++;
}

void cs_system_restore_signals(uint64_t saved) {
    cs_self()->held = saved;
}

uint32_t cs_system_pid(void) {
    return (uint32_t)__readgsqword(CS_TEB_PROCESS_ID);
}

uint32_t cs_system_parent_pid(void) {
    PROCESS_BASIC_INFORMATION information = {0};
    NtQueryInformationProcess(CS_SELF, ProcessBasicInformation, &information, sizeof information, NULL);
    return (uint32_t)(uintptr_t)information.InheritedFromUniqueProcessId;
}

uint32_t cs_system_tid(void) {
    return (uint32_t)__readgsqword(CS_TEB_THREAD_ID);
}

bool cs_system_thread_gone(uint32_t pid, uint32_t tid) {
    OBJECT_ATTRIBUTES attributes = {.Length = sizeof attributes};
    CLIENT_ID id = {(HANDLE)(uintptr_t)pid, (HANDLE)(uintptr_t)tid};
    HANDLE thread;
    NTSTATUS status = NtOpenThread(&thread, SYNCHRONIZE, &attributes, &id);
    if (status)
        return status == CS_STATUS_INVALID_CID;
    LARGE_INTEGER now = {0};
    status = NtWaitForSingleObject(thread, FALSE, &now);
    NtClose(thread);
    return status == CS_STATUS_SUCCESS;
}

void cs_system_thread_name(char name[CS_THREAD_NAME_BYTES]) {
    struct {
        UNICODE_STRING name;
        WCHAR text[256];
    } found;
    memset(name, 0, CS_THREAD_NAME_BYTES);
    if (NtQueryInformationThread(CS_SELF_THREAD, THREAD_NAME, &found, sizeof found, NULL))
        return;
    for (uint32_t i = 0; i < CS_THREAD_NAME_BYTES - 1 && i < found.name.Length / sizeof(WCHAR); i++)
        name[i] = found.name.Buffer[i] < 0x80 ? (char)found.name.Buffer[i] : '?';
}

void cs_system_yield(void) {
    NtYieldExecution();
}

size_t cs_system_peek(void *to, uint64_t address, size_t bytes) {
    SIZE_T read = 0, first = 4096 - address % 4096;
    if (first >= bytes || first >= 4096)
        first = bytes;
    if (NtReadVirtualMemory(CS_SELF, (const void *)address, to, first, &read) || read < first || first == bytes)
        return read;
    /* What is on the next page may not be there. */
    SIZE_T more = 0;
    NtReadVirtualMemory(CS_SELF, (const void *)(address + first), (uint8_t *)to + first, bytes - first, &more);
    return first + more;
}

bool cs_system_readable(uint64_t address) {
    return cs_readable_bytes((const void *)address) >= sizeof(uint64_t);
}

void NtFlushProcessWriteBuffers(void);

void cs_system_sync_cores(void) {
    NtFlushProcessWriteBuffers(); /* an interrupt on every processor that runs a thread of the process */
}

void cs_control_begin(void) {}

void *cs_system_memory(size_t bytes) {
    void *base = NULL;
    SIZE_T size = bytes;
    return NtAllocateVirtualMemory(CS_SELF, &base, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) ? NULL : base;
}

void cs_system_release(void *memory, size_t bytes) {
    (void)bytes;
    SIZE_T all = 0;
    NtFreeVirtualMemory(CS_SELF, &memory, &all, MEM_RELEASE);
}

/* Pages come when they are touched; what can be done beforehand is to stop while the disk still has room. */
bool cs_system_commit(void *start, size_t bytes) {
    static uint64_t since_check = DISK_CHECK_BYTES;
    (void)start;
    if (__atomic_add_fetch(&since_check, bytes, __ATOMIC_RELAXED) < DISK_CHECK_BYTES)
        return true;
    if (cs_session_disk_free() < DISK_RESERVE)
        return false;
    __atomic_store_n(&since_check, 0, __ATOMIC_RELAXED);
    return true;
}

/* The recorder's monotonic clock is another one than the performance counter; what it differs by from the time of day
 * was measured just now. */
void cs_system_clocks(uint64_t *tsc, uint64_t *monotonic_ns, uint64_t *realtime_ns) {
    LARGE_INTEGER now;
    uint64_t before = cs_tsc();
    NtQuerySystemTime(&now);
    *tsc = before + (cs_tsc() - before) / 2;
    *realtime_ns = (uint64_t)(now.QuadPart - TICKS_TO_1970) * 100;
    *monotonic_ns = *realtime_ns - (uint64_t)cs_start_options.clock_offset_ns;
}

/* No process becomes another program. */
uint64_t cs_system_birth_ns(void) {
    return 0;
}

uint64_t cs_readable_bytes(const void *address) {
    MEMORY_BASIC_INFORMATION found;
    if (NtQueryVirtualMemory(CS_SELF, address, MEMORY_BASIC, &found, sizeof found, NULL) || found.State != MEM_COMMIT ||
        !(found.Protect & READABLE) || found.Protect & PAGE_GUARD)
        return 0;
    return (uint64_t)((uint8_t *)found.BaseAddress + found.RegionSize - (const uint8_t *)address);
}

uint64_t cs_milliseconds(void) {
    LARGE_INTEGER counter, frequency;
    NtQueryPerformanceCounter(&counter, &frequency);
    return (uint64_t)counter.QuadPart / ((uint64_t)frequency.QuadPart / 1000);
}

void cs_sleep(uint32_t milliseconds) {
    LARGE_INTEGER interval = {.QuadPart = -10000ll * milliseconds};
    NtDelayExecution(FALSE, &interval);
}

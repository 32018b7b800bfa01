/* The system's native interface, as far as the agent uses it. These calls take no lock of the program's, use no heap
 * and little stack; kernel32 is asked only where they have no equal. Declarations that mingw-w64's <winternl.h> lacks
 * follow Microsoft's documentation of the Nt, Ldr and Rtl functions, and phnt's headers (System Informer) where there
 * is none. */
#ifndef CALLSCOPE_AGENT_NT_H
#define CALLSCOPE_AGENT_NT_H

#include <stdbool.h>
#include <stdint.h>
#include <windows.h>
#include <winternl.h>

#define CS_SELF ((HANDLE) - 1)
#define CS_SELF_THREAD ((HANDLE) - 2)
#define CS_STATUS_SUCCESS 0
#define CS_STATUS_INVALID_CID ((NTSTATUS)0xc000000b)

/* The thread's environment block: documented by winternl.h in part. */
#define CS_TEB_PROCESS_ID 0x40
#define CS_TEB_THREAD_ID 0x48
#define CS_TEB_SLOTS 0x1480
#define CS_TEB_SLOT_COUNT 64u
#define CS_TEB_EXPANSION_SLOTS 0x1780
#define CS_EXPANSION_SLOT_COUNT 1024u

/* An entry of the loader's list in order of loading. */
struct cs_loaded {
    LIST_ENTRY links;
    LIST_ENTRY memory_links, initialisation_links;
    uint8_t *base;
    void *entry_point;
    ULONG span;
    UNICODE_STRING path, name;
};

struct cs_loader_data {
    ULONG length;
    BOOLEAN initialised;
    void *reserved;
    LIST_ENTRY modules;
};

/* NtQueryInformationThread's ThreadBasicInformation, which is its class 0. */
struct cs_thread_information {
    NTSTATUS status;
    void *environment;
    CLIENT_ID id;
    ULONG_PTR affinity;
    LONG priority, base_priority;
};

/* LdrRegisterDllNotification's data: the same for loading and unloading. */
struct cs_loader_notice {
    ULONG flags;
    const UNICODE_STRING *path, *name;
    uint8_t *base;
    ULONG span;
};
#define CS_NOTICE_LOADED 1
#define CS_NOTICE_UNLOADED 2

typedef VOID CALLBACK cs_notified(ULONG reason, const struct cs_loader_notice *notice, void *context);

NTSTATUS NTAPI LdrRegisterDllNotification(ULONG flags, cs_notified *function, void *context, void **cookie);
void *NTAPI RtlAddVectoredExceptionHandler(ULONG first, PVECTORED_EXCEPTION_HANDLER handler);
NTSTATUS NTAPI LdrAddRefDll(ULONG flags, HMODULE library);
NTSTATUS NTAPI LdrLockLoaderLock(ULONG flags, ULONG *disposition, ULONG_PTR *cookie);
NTSTATUS NTAPI LdrUnlockLoaderLock(ULONG flags, ULONG_PTR cookie);
NTSTATUS NTAPI NtAllocateVirtualMemory(HANDLE process, void **base, ULONG_PTR zero_bits, SIZE_T *bytes, ULONG type,
                                       ULONG protection);
NTSTATUS NTAPI NtFreeVirtualMemory(HANDLE process, void **base, SIZE_T *bytes, ULONG type);
NTSTATUS NTAPI NtProtectVirtualMemory(HANDLE process, void **base, SIZE_T *bytes, ULONG protection, ULONG *old);
NTSTATUS NTAPI NtWriteVirtualMemory(HANDLE process, void *base, const void *data, SIZE_T bytes, SIZE_T *written);
NTSTATUS NTAPI NtReadVirtualMemory(HANDLE process, const void *base, void *data, SIZE_T bytes, SIZE_T *read);
NTSTATUS NTAPI NtQueryVirtualMemory(HANDLE process, const void *base, ULONG class, void *out, SIZE_T bytes,
                                    SIZE_T *returned);
NTSTATUS NTAPI NtCreateSection(HANDLE *section, ACCESS_MASK access, OBJECT_ATTRIBUTES *attributes, LARGE_INTEGER *size,
                               ULONG protection, ULONG allocation, HANDLE file);
NTSTATUS NTAPI NtMapViewOfSection(HANDLE section, HANDLE process, void **base, ULONG_PTR zero_bits, SIZE_T commit,
                                  LARGE_INTEGER *offset, SIZE_T *bytes, ULONG inherit, ULONG type, ULONG protection);
NTSTATUS NTAPI NtUnmapViewOfSection(HANDLE process, void *base);
NTSTATUS NTAPI NtReadFile(HANDLE file, HANDLE event, PIO_APC_ROUTINE routine, void *context, IO_STATUS_BLOCK *status,
                          void *data, ULONG bytes, LARGE_INTEGER *offset, ULONG *key);
NTSTATUS NTAPI NtWriteFile(HANDLE file, HANDLE event, PIO_APC_ROUTINE routine, void *context, IO_STATUS_BLOCK *status,
                           const void *data, ULONG bytes, LARGE_INTEGER *offset, ULONG *key);
NTSTATUS NTAPI NtOpenThread(HANDLE *thread, ACCESS_MASK access, OBJECT_ATTRIBUTES *attributes, CLIENT_ID *id);
NTSTATUS NTAPI NtGetNextThread(HANDLE process, HANDLE thread, ACCESS_MASK access, ULONG attributes, ULONG flags,
                               HANDLE *next);
NTSTATUS NTAPI NtSuspendThread(HANDLE thread, ULONG *count);
NTSTATUS NTAPI NtResumeThread(HANDLE thread, ULONG *count);
NTSTATUS NTAPI NtGetContextThread(HANDLE thread, CONTEXT *context);
NTSTATUS NTAPI NtSetContextThread(HANDLE thread, const CONTEXT *context);
NTSTATUS NTAPI NtQueueApcThread(HANDLE thread, void *routine, void *first, void *second, void *third);
NTSTATUS NTAPI NtDelayExecution(BOOLEAN alertable, const LARGE_INTEGER *interval);
NTSTATUS NTAPI NtYieldExecution(void);
NTSTATUS NTAPI NtCreateThreadEx(HANDLE *thread, ACCESS_MASK access, OBJECT_ATTRIBUTES *attributes, HANDLE process,
                                void *start, void *argument, ULONG flags, ULONG_PTR zero_bits, SIZE_T stack_commit,
                                SIZE_T stack_reserve, void *attribute_list);
NTSTATUS NTAPI NtSetTimer(HANDLE timer, const LARGE_INTEGER *due, void *routine, void *context, BOOLEAN resume,
                          LONG period, BOOLEAN *state);
BOOLEAN NTAPI RtlTryEnterCriticalSection(RTL_CRITICAL_SECTION *section);
NTSTATUS NTAPI RtlLeaveCriticalSection(RTL_CRITICAL_SECTION *section);
NTSTATUS NTAPI RtlUTF8ToUnicodeN(WCHAR *out, ULONG out_bytes, ULONG *written, const char *text, ULONG bytes);
NTSTATUS NTAPI NtQueryPerformanceCounter(LARGE_INTEGER *counter, LARGE_INTEGER *frequency);

#endif

/* Following children: the import of kernelbase by which every new process is made leads here. The child gets the agent
 * as an asynchronous call of its first thread, which runs when its libraries are initialised. */
#include "../core/memory.h"
#include "../core/system.h"
#include "windows_agent.h"

#define WOW64_INFORMATION 26      /* ProcessWow64Information: not 0 in a 32-bit process */
#define THREAD_CREATE_SUSPENDED 1 /* THREAD_CREATE_FLAGS_CREATE_SUSPENDED */

typedef NTSTATUS NTAPI create_process(HANDLE *process, HANDLE *thread, ACCESS_MASK process_access,
                                      ACCESS_MASK thread_access, OBJECT_ATTRIBUTES *process_attributes,
                                      OBJECT_ATTRIBUTES *thread_attributes, ULONG process_flags, ULONG thread_flags,
                                      void *parameters, void *create_info, void *attributes);

static create_process *original;
static struct cs_injection injection;

/* The library's own path, for children; false when it cannot be used. */
static bool fill_injection(void) {
    extern IMAGE_DOS_HEADER __ImageBase;
    static WCHAR path[CS_LIBRARY_CHARACTERS];
    DWORD characters = GetModuleFileNameW((HMODULE)&__ImageBase, path, CS_LIBRARY_CHARACTERS);
    return characters && characters < CS_LIBRARY_CHARACTERS &&
           cs_injection_fill(&injection, path, "callscope_attach", &cs_start_options);
}

static void inject(HANDLE process, HANDLE thread) {
    ULONG_PTR wow64 = 0;
    void *place = NULL;
    SIZE_T bytes = sizeof injection, written;
    if (NtQueryInformationProcess(process, WOW64_INFORMATION, &wow64, sizeof wow64, NULL) || wow64 ||
        NtAllocateVirtualMemory(process, &place, 0, &bytes, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READWRITE))
        return;
    if (!NtWriteVirtualMemory(process, place, &injection, sizeof injection, &written))
        NtQueueApcThread(thread, place, place, NULL, NULL);
}

static NTSTATUS NTAPI create_with_agent(HANDLE *process, HANDLE *thread, ACCESS_MASK process_access,
                                        ACCESS_MASK thread_access, OBJECT_ATTRIBUTES *process_attributes,
                                        OBJECT_ATTRIBUTES *thread_attributes, ULONG process_flags, ULONG thread_flags,
                                        void *parameters, void *create_info, void *attributes) {
    NTSTATUS status =
        original(process, thread, process_access, thread_access, process_attributes, thread_attributes, process_flags,
                 thread_flags | THREAD_CREATE_SUSPENDED, parameters, create_info, attributes);
    if (status < 0)
        return status;
    if (!cs_detached)
        inject(*process, *thread);
    if (!(thread_flags & THREAD_CREATE_SUSPENDED))
        NtResumeThread(*thread, NULL);
    return status;
}

void cs_children_follow(void) {
    struct cs_image image;
    uint32_t bytes = 0;
    if (original) {
        fill_injection();
        return;
    }
    HMODULE library = GetModuleHandleW(L"kernelbase.dll");
    original = (create_process *)(void *)GetProcAddress(GetModuleHandleW(L"ntdll.dll"), "NtCreateUserProcess");
    if (!library || !original || !cs_image_read(&image, (uint8_t *)library, 0x7fffffff) || !fill_injection())
        return;
    void **imports = (void **)cs_image_directory(&image, IMAGE_DIRECTORY_ENTRY_IAT, &bytes);
    for (uint32_t i = 0; imports && i < bytes / sizeof *imports; i++) {
        if (imports[i] != (void *)original)
            continue;
        void *page = &imports[i];
        SIZE_T size = sizeof *imports;
        ULONG old;
        if (NtProtectVirtualMemory(CS_SELF, &page, &size, PAGE_READWRITE, &old))
            return;
        __atomic_store_n(&imports[i], (void *)create_with_agent, __ATOMIC_RELEASE);
        NtProtectVirtualMemory(CS_SELF, &page, &size, old, &old);
    }
}

// Ends by what it raises itself: WHAT, with a thread that is named in the old way or the new one: HOW.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

static const char *what;
static volatile int zero, sink;
static void (*volatile nowhere)(void) = (void (*)(void))0x10;

__attribute__((noinline)) static void fail(void) {
    if (!strcmp(what, "raise"))
        RaiseException(0xe0001234, 0, 0, NULL); // FAULT raise
    if (!strcmp(what, "break"))
        DebugBreak(); // FAULT break
    if (!strcmp(what, "fault"))
        *(volatile int *)16 = 1; // FAULT fault
    if (!strcmp(what, "divide"))
        sink = 100 / zero; // FAULT divide
    if (!strcmp(what, "illegal"))
        __builtin_trap(); // FAULT illegal
    if (!strcmp(what, "privileged"))
        __asm__ volatile("hlt"); // FAULT privileged
    if (!strcmp(what, "jump"))
        nowhere(); // FAULT jump
    __asm__ volatile("");
}

// Microsoft, "How to set a thread name in native code".
static void name_by_exception(const char *name) {
    ULONG_PTR facts[] = {0x1000, (ULONG_PTR)name, (DWORD)-1, 0};
    RaiseException(0x406d1388, 0, 3, facts);
}

static void name_by_call(const wchar_t *name) {
    HMODULE library = GetModuleHandleA("kernelbase.dll");
    HRESULT(WINAPI * set)(HANDLE, const wchar_t *) = (void *)GetProcAddress(library, "SetThreadDescription");
    if (set)
        set(GetCurrentThread(), name);
}

static LONG CALLBACK go_on(EXCEPTION_POINTERS *exception) {
    DWORD code = exception->ExceptionRecord->ExceptionCode;
    return code == 0x406d1388 || code == 0xe0005678 ? EXCEPTION_CONTINUE_EXECUTION : EXCEPTION_CONTINUE_SEARCH;
}

static DWORD WINAPI work(void *how) {
    if (!strcmp(how, "old"))
        name_by_exception("worker of old");
    else
        name_by_call(L"worker of new");
    RaiseException(0xe0005678, 0, 0, NULL);
    fail();
    return 0;
}

int main(int count, char **arguments) {
    what = arguments[1];
    AddVectoredExceptionHandler(0, go_on);
    HANDLE thread = CreateThread(NULL, 0, work, count > 2 ? arguments[2] : "old", 0, NULL);
    WaitForSingleObject(thread, INFINITE);
    puts("handled");
    return 0;
}

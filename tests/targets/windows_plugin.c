/* A library that windows_program loads and frees again and again. */
#include <windows.h>

static long attached;

__attribute__((noinline)) static long step(long n) {
    return n * 3 + attached;
}

__declspec(dllexport) long plugin_work(long n) {
    long sum = 0;
    for (long i = 0; i < 10; i++)
        sum += step(n + i);
    return sum;
}

BOOL WINAPI DllMain(HINSTANCE library, DWORD reason, void *reserved) {
    (void)library;
    (void)reserved;
    if (reason == DLL_PROCESS_ATTACH)
        attached = 1;
    return TRUE;
}

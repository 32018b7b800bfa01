// Eight threads load and unload two libraries COUNT times each while another captures its stack: captures COUNT.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <windows.h>

#include "capture.h"

static int rounds;
static volatile LONG loading;

static DWORD WINAPI churn(void *argument) {
    for (int i = 0; i < rounds; i++) {
        int which = (int)(((intptr_t)argument + i) % 2);
        HMODULE library = LoadLibraryA(which ? "libbar.dll" : "libfoo.dll");
        if (!library)
            exit(2);
        ((void (*)(uint64_t))(void *)GetProcAddress(library, "work"))(1000 + (uint64_t)which);
        FreeLibrary(library);
    }
    InterlockedDecrement(&loading);
    return 0;
}

__attribute__((noinline)) static void steady(void) {
    capture(1);
    __asm__ volatile("");
}

static DWORD WINAPI capture_meanwhile(void *argument) {
    (void)argument;
    while (loading) {
        steady();
        Sleep(1);
    }
    return 0;
}

int main(int count, char **arguments) {
    HANDLE all[9];
    rounds = count > 1 ? atoi(arguments[1]) : 1;
    loading = 8;
    for (intptr_t i = 0; i < 9; i++)
        all[i] = CreateThread(NULL, 0, i < 8 ? churn : capture_meanwhile, (void *)i, 0, NULL);
    WaitForMultipleObjects(9, all, TRUE, INFINITE);
    return 0;
}

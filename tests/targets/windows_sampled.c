// Threads whose stacks are known at any moment: sampled MODE MILLISECONDS.
//
// Function number n of a thread's chain is of the kind that kind_of(n) says; the innermost ones work. Frames are of all
// sorts: small, large (probed), addressed by rbp, with many registers saved, without a frame, ended by a tail call.
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#define NOINLINE __attribute__((noipa))
#define DEPTH 12

static volatile LONG working;

static uint64_t thread_ns(void) {
    FILETIME created, ended, kernel, user;
    GetThreadTimes(GetCurrentThread(), &created, &ended, &kernel, &user);
    uint64_t both = ((uint64_t)kernel.dwHighDateTime << 32) + kernel.dwLowDateTime +
                    ((uint64_t)user.dwHighDateTime << 32) + user.dwLowDateTime;
    return both * 100;
}

typedef long function(int depth, long a);
static long go_on(int depth, long a);

NOINLINE long leaf(long a) {
    return a * 3 + 1;
}

NOINLINE long k0_small(int depth, long a) {
    long result = go_on(depth, a + 1);
    return leaf(result) ^ a;
}

NOINLINE long k1_large(int depth, long a) {
    volatile char block[9000];
    block[a & 4095] = (char)a;
    long result = go_on(depth, a + block[0]);
    return leaf(result) + block[a & 4095];
}

NOINLINE long k2_variable(int depth, long a) {
    char *more = alloca(32 + (a & 63));
    more[0] = (char)a;
    __asm__ volatile("" : : "r"(more) : "memory");
    long result = go_on(depth, a + more[0]);
    return leaf(result) - more[0];
}

NOINLINE long k3_registers(int depth, long a) {
    long b = leaf(a), c = leaf(b), d = leaf(c), e = leaf(d), f = leaf(e), g = leaf(f), h = leaf(g);
    long result = go_on(depth, a + h);
    return result + b + c * 2 + d * 3 + e * 4 + f * 5 + g * 6 + h;
}

NOINLINE long k4_vector(int depth, long a) {
    double x = (double)a;
    __asm__ volatile("" : "+x"(x) : : "xmm6", "xmm7", "xmm8");
    long result = go_on(depth, a + 2);
    return leaf(result) + (long)(x * 0.5);
}

static function *const kinds[] = {k0_small, k1_large, k2_variable, k3_registers, k4_vector};

static int kind_of(int depth) {
    return (depth * depth + depth / 2) % 5;
}

// Left by a jump, where the compiler makes one of it: it may be missing in a stack.
NOINLINE static long go_on(int depth, long a) {
    if (!depth)
        return leaf(a);
    return kinds[kind_of(depth)](depth - 1, a);
}

static DWORD WINAPI work(void *argument) {
    uint64_t until = (uint64_t)(uintptr_t)argument * 1000000u;
    volatile long sum = 0;
    while (thread_ns() < until)
        for (int i = 0; i < 2000; i++)
            sum += go_on(DEPTH, i);
    InterlockedDecrement(&working);
    return 0;
}

static DWORD WINAPI pause_often(void *argument) {
    while (working)
        Sleep(1);
    return argument != NULL;
}

// Most of the time in the allocator and its lock.
static DWORD WINAPI allocate(void *argument) {
    uint64_t until = (uint64_t)(uintptr_t)argument * 1000000u;
    while (thread_ns() < until)
        for (int i = 0; i < 200; i++) {
            void *block = HeapAlloc(GetProcessHeap(), 0, (SIZE_T)(i * 37 % 3000));
            HeapFree(GetProcessHeap(), 0, block);
        }
    InterlockedDecrement(&working);
    return 0;
}

static DWORD WINAPI load(void *argument) {
    (void)argument;
    while (working) {
        HMODULE library = LoadLibraryA("version.dll");
        if (library)
            FreeLibrary(library);
    }
    return 0;
}

static DWORD WINAPI begin(void *argument) {
    return argument == NULL;
}

static DWORD WINAPI breed(void *argument) {
    while (working) {
        HANDLE thread = CreateThread(NULL, 0, begin, argument, 0, NULL);
        WaitForSingleObject(thread, INFINITE);
        CloseHandle(thread);
    }
    return 0;
}

static void run(LPTHREAD_START_ROUTINE *functions, int count, int milliseconds) {
    HANDLE all[8];
    for (int i = 0; i < count; i++)
        all[i] = CreateThread(NULL, 0, functions[i], (void *)(uintptr_t)milliseconds, 0, NULL);
    WaitForMultipleObjects((DWORD)count, all, TRUE, INFINITE);
    for (int i = 0; i < count; i++)
        printf("%lu\n", (unsigned long)GetThreadId(all[i]));
}

int main(int count, char **arguments) {
    int milliseconds = count > 2 ? atoi(arguments[2]) : 1000;
    const char *mode = count > 1 ? arguments[1] : "";
    if (!strcmp(mode, "work")) {
        working = 2;
        run((LPTHREAD_START_ROUTINE[]){work, work, pause_often}, 3, milliseconds);
    } else if (!strcmp(mode, "locks")) {
        working = 2;
        run((LPTHREAD_START_ROUTINE[]){allocate, allocate, load, breed}, 4, milliseconds);
    } else if (!strcmp(mode, "end")) {
        working = 1;
        CreateThread(NULL, 0, work, (void *)100000, 0, NULL);
        for (uint64_t start = thread_ns(); thread_ns() < start + 20000000u;)
            leaf(1);
        printf("end\n");
        fflush(stdout);
        ExitProcess(7);
    }
    return 0;
}

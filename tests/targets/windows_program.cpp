// What Windows programs do that a tracer could break: exceptions of C++ and of the system, longjmp, walks of the stack,
// fibers, threads, TLS slots, libraries that come and go, children, sudden ends. Every mode prints what does not depend on
// the run. Usage: windows_program MODE [ARGUMENT]
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <windows.h>

#define NOINLINE __attribute__((noinline))

static volatile long counted;

extern "C" long fib(long n);
static long (*volatile again)(long) = fib; // compilers inline recursion

extern "C" NOINLINE long fib(long n) {
    return n < 2 ? n : again(n - 1) + again(n - 2);
}

struct Guard {
    int *gone;
    explicit Guard(int *gone) : gone(gone) {}
    NOINLINE ~Guard() {
        ++*gone;
    }
};

NOINLINE static int thrower(int depth, int *gone) {
    Guard guard(gone);
    if (depth == 0)
        throw std::runtime_error("bottom");
    return thrower(depth - 1, gone) + 1;
}

NOINLINE static int catcher(int depth, int *gone) {
    try {
        return thrower(depth, gone);
    } catch (const std::logic_error &) {
        return -1;
    } catch (...) {
        if (depth % 2)
            throw;
        return depth;
    }
}

static int exceptions() {
    int gone = 0, caught = 0;
    for (int i = 0; i < 200; i++)
        try {
            caught += catcher(i % 13, &gone);
        } catch (const std::exception &error) {
            caught += (int)strlen(error.what());
        }
    printf("exceptions %d %d\n", gone, caught);
    return 0;
}

static long handled;

static LONG CALLBACK on_fault(EXCEPTION_POINTERS *fault) {
    if (fault->ExceptionRecord->ExceptionCode == 0xe0001234) {
        handled += (long)fault->ExceptionRecord->ExceptionInformation[0];
        return EXCEPTION_CONTINUE_EXECUTION;
    }
    if (fault->ExceptionRecord->ExceptionCode == EXCEPTION_ACCESS_VIOLATION) {
        handled += 1000;
        fault->ContextRecord->Rax = (DWORD64)&handled; // the instruction is tried again with another address
        return EXCEPTION_CONTINUE_EXECUTION;
    }
    return EXCEPTION_CONTINUE_SEARCH;
}

NOINLINE static long faulty() {
    long value;
    asm volatile("xor %%eax, %%eax\n\tmovl (%%rax), %0" : "=r"(value) : : "rax");
    return value;
}

NOINLINE static void raiser(int depth) {
    if (depth) {
        raiser(depth - 1);
        counted++;
        return;
    }
    ULONG_PTR one = 1;
    RaiseException(0xe0001234, 0, 1, &one);
}

static jmp_buf buffer;

NOINLINE static void jumper(int depth) {
    if (!depth)
        longjmp(buffer, 7);
    jumper(depth - 1);
    counted++;
}

static int faults() {
    void *handler = AddVectoredExceptionHandler(1, on_fault);
    for (int i = 0; i < 50; i++)
        raiser(i % 7);
    long read = 0;
    for (int i = 0; i < 50; i++)
        read = faulty();
    RemoveVectoredExceptionHandler(handler);
    volatile int jumps = 0;
    for (volatile int i = 0; i < 50; i++)
        if (setjmp(buffer) == 0)
            jumper(i % 9);
        else
            jumps++;
    printf("faults %ld %ld %d\n", handled, read, jumps);
    return 0;
}

// How many of the walk's first frames lie in this program: as many as there are calls, if unwinding works.
NOINLINE static int walker(int depth) {
    if (depth) {
        int found = walker(depth - 1);
        counted++;
        return found;
    }
    void *frames[62];
    int found = 0, taken = RtlCaptureStackBackTrace(0, 62, frames, nullptr);
    MEMORY_BASIC_INFORMATION own, other;
    VirtualQuery((void *)walker, &own, sizeof own);
    for (int i = 0; i < taken; i++) {
        VirtualQuery(frames[i], &other, sizeof other);
        found += other.AllocationBase == own.AllocationBase;
    }
    return found;
}

static int walks() {
    int shallow = walker(1);
    printf("walks %d %d\n", walker(11) - shallow, walker(31) - shallow);
    return 0;
}

static void *home;

static void CALLBACK fiber(void *argument) {
    for (;;) {
        counted += fib((long)(intptr_t)argument);
        SwitchToFiber(home);
    }
}

static int fibers() {
    home = ConvertThreadToFiber(nullptr);
    void *made[4];
    for (int i = 0; i < 4; i++)
        made[i] = CreateFiber(0x10000, fiber, (void *)(intptr_t)(i + 3));
    for (int i = 0; i < 400; i++)
        SwitchToFiber(made[i % 4]);
    printf("fibers %ld\n", counted);
    return 0;
}

static DWORD CALLBACK thread(void *argument) {
    int gone = 0;
    long sum = fib((long)(intptr_t)argument) + catcher(4, &gone);
    return (DWORD)(sum + gone);
}

static int threads(int rounds) {
    unsigned long sum = 0;
    for (int round = 0; round < rounds; round++) {
        HANDLE running[8];
        for (int i = 0; i < 8; i++)
            running[i] = CreateThread(nullptr, 0, thread, (void *)(intptr_t)(i + 5), 0, nullptr);
        WaitForMultipleObjects(8, running, TRUE, INFINITE);
        for (HANDLE handle : running) {
            DWORD status;
            GetExitCodeThread(handle, &status);
            sum += status;
            CloseHandle(handle);
        }
    }
    printf("threads %lu\n", sum);
    return 0;
}

static int slots() {
    DWORD taken[200], last = 0;
    for (DWORD &slot : taken)
        slot = TlsAlloc();
    for (DWORD &slot : taken)
        TlsSetValue(slot, (void *)(intptr_t)(slot * 3 + 1));
    fib(10);
    int wrong = 0;
    for (DWORD slot : taken) {
        wrong += TlsGetValue(slot) != (void *)(intptr_t)(slot * 3 + 1);
        last = slot;
    }
    printf("slots %d %d\n", wrong, last > 64);
    return 0;
}

static int libraries(const char *path) {
    long sum = 0;
    for (int i = 0; i < 20; i++) {
        HMODULE library = LoadLibraryA(path);
        if (!library)
            return 2;
        auto work = (long (*)(long))(void *)GetProcAddress(library, "plugin_work");
        sum += work(i);
        FreeLibrary(library);
    }
    printf("libraries %ld\n", sum);
    return 0;
}

static int child(const char *self) {
    STARTUPINFOA startup = {};
    startup.cb = sizeof startup;
    PROCESS_INFORMATION made;
    std::string command = "\"" + std::string(self) + "\" exceptions";
    fflush(stdout);
    if (!CreateProcessA(nullptr, &command[0], nullptr, nullptr, TRUE, 0, nullptr, nullptr, &startup, &made))
        return 2;
    WaitForSingleObject(made.hProcess, INFINITE);
    DWORD status;
    GetExitCodeProcess(made.hProcess, &status);
    printf("child %lu\n", status);
    return 9;
}

static int sleeper(const char *seconds) {
    printf("ready\n");
    fflush(stdout);
    DWORD end = GetTickCount() + (DWORD)(atof(seconds) * 1000);
    while (GetTickCount() < end) {
        counted += fib(12);
        Sleep(1);
    }
    return 0;
}

int main(int count, char **arguments) {
    std::string mode = count > 1 ? arguments[1] : "";
    const char *argument = count > 2 ? arguments[2] : "20";
    if (mode == "fib") {
        printf("fib %ld\n", fib(atol(argument)));
        return 7;
    }
    if (mode == "exceptions")
        return exceptions();
    if (mode == "faults")
        return faults();
    if (mode == "walks")
        return walks();
    if (mode == "fibers")
        return fibers();
    if (mode == "threads")
        return threads(atoi(argument));
    if (mode == "slots")
        return slots();
    if (mode == "libraries")
        return libraries(argument);
    if (mode == "child")
        return child(arguments[0]);
    if (mode == "sleep")
        return sleeper(argument);
    if (mode == "terminate" || mode == "crash") {
        printf("fib %ld\n", fib(15));
        fflush(stdout);
        if (mode == "terminate")
            TerminateProcess(GetCurrentProcess(), 33);
        faulty();
    }
    if (mode == "uncaught")
        thrower(5, (int *)&counted);
    return 1;
}

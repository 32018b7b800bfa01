// Ends in ways that no handler is asked about first: WHAT [HOW].
#include <windows.h>

#include <cassert>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>

static const char *what;

static bool is(const char *name) {
    return !std::strcmp(what, name);
}

__attribute__((noinline)) static void fail() {
    if (is("abort"))
        std::abort(); // END abort
    if (is("throw"))
        throw std::runtime_error("no such table"); // END throw
    if (is("assert"))
        assert(!"never"); // END assert
    if (is("terminate"))
        std::terminate(); // END terminate
    if (is("fast"))
        __asm__ volatile("int $0x29" : : "c"(7));
    if (is("microsoft")) { // what Microsoft's compilers raise
        ULONG_PTR facts[] = {0x19930520, 0, 0, 0};
        RaiseException(0xE06D7363, EXCEPTION_NONCONTINUABLE, 4, facts); // END microsoft
    }
    if (is("parameter")) // what the C runtime does about one that is wrong
        TerminateProcess(GetCurrentProcess(), 0xC0000417);
    if (is("interrupt")) // what Windows does by default
        ExitProcess(0xC000013A);
    __asm__ volatile("");
}

__attribute__((noinline)) static void promised() noexcept {
    if (is("noexcept"))
        throw std::logic_error("broken promise"); // END noexcept
    fail();
    __asm__ volatile("");
}

__attribute__((noinline)) static void work(int depth) {
    if (depth)
        work(depth - 1);
    else if (is("noexcept"))
        promised();
    else
        fail();
    __asm__ volatile("");
}

static void leave(int) {
    std::exit(5);
}

static DWORD WINAPI on_thread(void *) {
    work(3);
    return 0;
}

int main(int count, char **arguments) {
    const char *how = count > 2 ? arguments[2] : "";
    what = arguments[1];
    std::signal(SIGABRT, !std::strcmp(how, "handler") ? leave : SIG_DFL);
    if (!std::strcmp(how, "caught"))
        try {
            throw std::domain_error("caught before");
        } catch (const std::exception &) {
        }
    if (!std::strcmp(how, "thread"))
        WaitForSingleObject(CreateThread(nullptr, 0, on_thread, nullptr, 0, nullptr), INFINITE);
    else
        work(3);
    std::puts("fine");
    return std::strcmp(how, "three") ? 0 : 3;
}

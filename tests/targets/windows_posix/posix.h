// What random_runtime.h asks of POSIX, for Windows: signals that a program sends itself are calls, coroutines are
// fibers, there is no fork and no timer. Included before everything else.
#pragma once

#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <malloc.h>
#include <sys/types.h>
#include <windows.h>

#undef setjmp
#define setjmp(buffer) _setjmp(buffer, nullptr) // longjmp then restores registers and unwinds nothing, as on Linux
#undef O_APPEND
#define O_APPEND (_O_APPEND | _O_BINARY)

enum { PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2, MAP_ANONYMOUS = 32, MAP_NORESERVE = 0x4000 };
#define MAP_FAILED ((void *)-1)

static inline void *mmap(void *, size_t bytes, int, int, int, int) {
    void *memory = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    return memory ? memory : MAP_FAILED;
}

enum { SYS_gettid };

static inline int syscall(int) {
    return (int)GetCurrentThreadId();
}

static inline pid_t fork() {
    return 1;
}

static inline pid_t waitpid(pid_t child, int *status, int) {
    *status = 0;
    return child;
}

#define SIGUSR1 10
#define SIGRTMIN 34
#define SIGEV_SIGNAL 0
#define SA_ONSTACK 1
#define SA_RESTART 2
#define SA_NODEFER 4

struct stack_t {
    void *ss_sp;
    size_t ss_size;
};

static inline int sigaltstack(const stack_t *, stack_t *) {
    return 0;
}

struct sigaction {
    void (*sa_handler)(int);
    int sa_flags;
};

static void (*user_handler)(int);

static inline int sigaction(int number, const struct sigaction *action, struct sigaction *) {
    if (number == SIGUSR1)
        user_handler = action->sa_handler;
    return 0;
}

static int raise_user(int number) {
    user_handler(number);
    return 0;
}
#define raise raise_user

struct sigevent {
    int sigev_notify, sigev_signo;
};

typedef int timer_t;

static inline int timer_create(int, struct sigevent *, timer_t *) {
    return 0;
}

static inline int timer_settime(timer_t, int, const struct itimerspec *, struct itimerspec *) {
    return 0;
}
#define CLOCK_MONOTONIC 1

struct ucontext_t {
    stack_t uc_stack;
    void *fiber;
    void (*root)(int);
    int argument;
};

static void CALLBACK fiber_root(void *argument) {
    ucontext_t *context = (ucontext_t *)argument;
    context->root(context->argument);
}

static inline int getcontext(ucontext_t *) {
    return 0;
}

static inline void makecontext(ucontext_t *context, void (*root)(), int, int argument) {
    context->root = (void (*)(int))root;
    context->argument = argument;
    context->fiber = CreateFiber(context->uc_stack.ss_size, fiber_root, context);
}

static inline int swapcontext(ucontext_t *from, ucontext_t *to) {
    if (!IsThreadAFiber())
        ConvertThreadToFiber(nullptr);
    from->fiber = GetCurrentFiber();
    SwitchToFiber(to->fiber);
    return 0;
}

// By insertion: what matters is that another function calls the comparison.
static __attribute__((noinline)) void qsort_r(void *data, size_t count, size_t size,
                                              int (*compare)(const void *, const void *, void *), void *context) {
    int *values = (int *)data;
    if (size != sizeof *values)
        abort();
    asm volatile("" : "+r"(compare)); // no copy of this function has a comparator inside
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && compare(&values[j - 1], &values[j], context) > 0; j--) {
            int value = values[j];
            values[j] = values[j - 1];
            values[j - 1] = value;
        }
}

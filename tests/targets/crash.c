// Crashes: KIND WHERE HANDLER. The fault happens with every general register but rsp and rbp known.
// -DONLY_FAULT makes a library of the faulting functions, -DNO_FAULT a program that needs it.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void fault(const char *kind);

#ifndef NO_FAULT
// rax, rcx and rdx are 1, 0x11 and 0 where a division needs them so.
#define KNOWN_REGISTERS                                                                                                \
    "mov $1, %%eax; mov $0x11, %%ecx; xor %%edx, %%edx; mov $0x13, %%ebx; mov $0x14, %%esi; mov $0x15, %%edi;"         \
    "mov $0x18, %%r8d; mov $0x19, %%r9d; mov $0x1a, %%r10d; mov $0x1b, %%r11d; mov $0x1c, %%r12d;"                     \
    "mov $0x1d, %%r13d; mov $0x1e, %%r14d; mov $0x1f, %%r15d; movq %%rcx, %%xmm3;"
#define FAULT(instruction)                                                                                             \
    __asm__ volatile(KNOWN_REGISTERS instruction                                                                       \
                     :                                                                                                 \
                     : "m"(nothing), "m"(unbacked)                                                                     \
                     : "rax", "rcx", "rdx", "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", \
                       "xmm3", "memory")

static volatile int nothing;
static char *unbacked;

__attribute__((noinline)) static int deep(int n) {
    volatile char taken[512];
    taken[0] = (char)n;
    return deep(n + 1) + taken[0]; // FAULT overflow
}

__attribute__((noinline)) static int is(const char *left, const char *right) {
    return strcmp(left, right) == 0;
}

__attribute__((noinline)) void fault(const char *kind) {
    if (is(kind, "segv"))
        FAULT("movl $1, 0x10"); // FAULT segv
    if (is(kind, "ill"))
        FAULT("ud2"); // FAULT ill
    if (is(kind, "fpe"))
        FAULT("idivl %0"); // FAULT fpe
    if (is(kind, "trap"))
        FAULT("int3"); // FAULT trap
    if (is(kind, "bus")) {
        unbacked = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(tmpfile()), 0);
        FAULT("mov %1, %%rbx; movl $1, (%%rbx)"); // FAULT bus
    }
    if (is(kind, "abrt"))
        abort(); // FAULT abrt
    if (is(kind, "sys"))
        raise(SIGSYS); // FAULT sys
    if (is(kind, "overflow"))
        deep(0);
    if (is(kind, "jump"))
        ((void (*)(void))0x1000)(); // FAULT jump
}
#endif

#ifndef ONLY_FAULT
static const char *kind, *how;
static const int fatal[] = {SIGSEGV, SIGABRT, SIGILL, SIGFPE, SIGBUS, SIGTRAP, SIGSYS};

static void say(const char *text) {
    if (write(1, text, strlen(text)) < 0)
        _exit(99);
}

static void handle(int number) {
    say("handled\n");
    if (!strcmp(how, "exit"))
        _exit(7);
    if (!strcmp(how, "nested") || !strcmp(how, "open"))
        *(volatile int *)0x20 = number; // FAULT second
    if (!strcmp(how, "again"))
        signal(number, SIG_DFL);
}

static void use_stack(void) {
    stack_t stack = {.ss_size = 65536, .ss_sp = malloc(65536)}, before;
    if (sigaltstack(&stack, &before) || !(before.ss_flags & SS_DISABLE) || before.ss_sp)
        say("somebody's stack\n");
}

static void check_default(int number) {
    struct sigaction now;
    sigaction(number, 0, &now);
    if (now.sa_handler != SIG_DFL || now.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESETHAND))
        say("somebody's handler\n");
    if (signal(number, SIG_DFL) != SIG_DFL)
        say("somebody's handler by signal\n");
}

static void install(int number) {
    struct sigaction mine = {.sa_handler = handle, .sa_flags = SA_ONSTACK}, now;
    if (!strcmp(how, "open")) // its own signal may come again in the handler
        mine.sa_flags |= SA_NODEFER;
    if (!strcmp(how, "once"))
        mine.sa_flags |= (int)SA_RESETHAND;
    sigaction(number, &mine, 0);
    sigaction(number, 0, &now);
    if (now.sa_handler != handle || (now.sa_flags & ~0x04000000) != mine.sa_flags)
        say("not my handler\n");
}

static void on_signal(int number) {
    (void)number;
    fault(kind);
}

static void *on_thread(void *unused) {
    (void)unused;
    pthread_setname_np(pthread_self(), "worker");
    if (*how)
        use_stack();
    fault(kind);
    return 0;
}

int main(int count, char **arguments) {
    kind = arguments[1];
    const char *where = arguments[2];
    how = count > 3 ? arguments[3] : "";
    for (unsigned i = 0; i < sizeof fatal / sizeof *fatal; i++)
        check_default(fatal[i]);
    for (unsigned i = 0; *how && i < sizeof fatal / sizeof *fatal; i++)
        install(fatal[i]);
    if (!strcmp(where, "thread")) {
        pthread_t thread;
        pthread_create(&thread, 0, on_thread, 0);
        pthread_join(thread, 0);
        return 0;
    }
    if (*how)
        use_stack();
    signal(SIGUSR1, on_signal);
    if (!strcmp(where, "handler"))
        raise(SIGUSR1);
    fault(kind);
    say("went on\n");
    return 0;
}
#endif

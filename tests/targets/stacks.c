// Control that leaves the one stack: longjmp, coroutines, a storm of signals on an alternate stack, and backtrace()
// from signal handlers that strike anywhere in the code.
#define _GNU_SOURCE
#include <execinfo.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

static volatile long hits, broken, walked;
static void *main_low, *main_high; // the code of main, as backtrace() should find it

NOINLINE static long leaf(long x) {
    long a[8]; // in the red zone, where the compiler likes it
    for (int i = 0; i < 8; i++)
        a[i] = x * i;
    __asm__ volatile("" : : "r"(a) : "memory");
    return a[x & 7] + a[3];
}

NOINLINE static long work(long n) {
    long sum = 0;
    for (long i = 0; i < n; i++)
        sum += leaf(i);
    return sum;
}

NOINLINE static void nest(int depth) {
    hits++;
    if (depth > 0)
        nest(depth - 1);
    __asm__ volatile("");
}

static void on_alarm(int signal) {
    (void)signal;
    nest(3);
}

static void on_profile(int signal) {
    (void)signal;
    void *frames[64];
    int count = backtrace(frames, 64), found = 0;
    for (int i = 0; i < count; i++)
        found |= frames[i] > main_low && frames[i] <= main_high;
    walked++;
    broken += !found;
}

static jmp_buf back;
static sigjmp_buf signal_back;

NOINLINE static void jump(int n) {
    if (n == 0)
        longjmp(back, 7);
    jump(n - 1);
    __asm__ volatile("");
}

NOINLINE static int set_and_jump(int n) {
    volatile int before = n;
    int result = setjmp(back);
    if (result)
        return result + before;
    jump(n);
    return 0;
}

static void on_fault(int signal) {
    nest(2);
    siglongjmp(signal_back, signal);
}

NOINLINE static int fault(void) {
    volatile int *nowhere = NULL;
    if (sigsetjmp(signal_back, 1))
        return 1;
    work(10);
    return *nowhere;
}

static ucontext_t outside[4], inside[4];
static long coroutine_sum;

NOINLINE static void step(int number, int depth) {
    coroutine_sum += depth;
    if (depth == 2)
        swapcontext(&inside[number], &outside[number]);
    if (depth > 0)
        step(number, depth - 1);
    __asm__ volatile("");
}

static void coroutine(int number) {
    for (int i = 0; i < 200; i++)
        step(number, 5);
}

static void handle(int signal, void (*handler)(int), int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaction(signal, &action, NULL);
}

static timer_t start_timer(int signal, long nanoseconds) {
    timer_t timer;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = signal;
    struct itimerspec every = {{0, nanoseconds}, {0, nanoseconds}};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &every, NULL);
    return timer;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

int main(void) {
    void *warm[4];
    backtrace(warm, 4); // loads libgcc outside any handler
    main_low = (void *)main;
    main_high = (char *)main_low + 4096;
    stack_t stack = {.ss_sp = malloc(1 << 17), .ss_size = 1 << 17};
    sigaltstack(&stack, NULL);

    long sum = 0;
    for (int i = 0; i < 2000; i++)
        sum += set_and_jump(i % 40);
    handle(SIGSEGV, on_fault, SA_ONSTACK);
    for (int i = 0; i < 300; i++)
        sum += fault();
    printf("jumps %ld\n", sum);

    // Three timers at once: on the alternate stack, on the stack struck, and one that walks the stack.
    handle(SIGALRM, on_alarm, SA_ONSTACK | SA_RESTART);
    handle(SIGVTALRM, on_alarm, SA_RESTART);
    handle(SIGPROF, on_profile, SA_RESTART);
    timer_t timers[3] = {start_timer(SIGALRM, 50000), start_timer(SIGVTALRM, 70000), start_timer(SIGPROF, 90000)};
    double begin = seconds();
    sum = 0;
    for (int i = 0; i < 100 || ((hits < 4000 || walked < 500) && seconds() - begin < 10); i++)
        sum = work(5000);
    for (int i = 0; i < 3; i++)
        timer_delete(timers[i]);
    printf("storm %ld, enough signals %d, stacks walked %d, broken %ld\n", sum, hits >= 4000, walked >= 500, broken);

    for (int number = 0; number < 4; number++) {
        getcontext(&inside[number]);
        inside[number].uc_stack.ss_sp = malloc(1 << 16);
        inside[number].uc_stack.ss_size = 1 << 16;
        inside[number].uc_link = &outside[number];
        makecontext(&inside[number], (void (*)(void))coroutine, 1, number);
    }
    for (int i = 0; i < 201 * 4; i++) {
        swapcontext(&outside[i % 4], &inside[i % 4]);
        sum += work(3);
    }
    printf("coroutines %ld\n", coroutine_sum + sum);
    return 0;
}

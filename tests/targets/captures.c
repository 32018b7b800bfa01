// Captures of call stacks: captures MODE [ARGUMENTS]. Prints what the captures must show.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

extern void callscope_capture(uint64_t tag) __attribute__((weak));

typedef void function(uint64_t tag);

static void *load(const char *path, function **entry) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    *entry = (function *)dlsym(library, "library_entry");
    return library;
}

// A at some place, B at the same, A elsewhere.
static void reload(const char *a, const char *b) {
    function *entry;
    void *library = load(a, &entry);
    printf("%p\n", (void *)entry);
    entry(1);
    dlclose(library);
    library = load(b, &entry);
    printf("%p\n", (void *)entry);
    entry(2);
    void *again = load(a, &entry);
    printf("%p\n", (void *)entry);
    entry(3);
    dlclose(again);
    dlclose(library);
}

static const char *paths[16];
static int path_count, rounds;
static volatile int loading;

static void *churn(void *argument) {
    for (int i = 0; i < rounds; i++) {
        int which = (int)((intptr_t)argument + i) % path_count;
        function *entry;
        void *library = load(paths[which], &entry);
        entry(1000 + (uint64_t)which);
        dlclose(library);
    }
    __atomic_fetch_sub(&loading, 1, __ATOMIC_RELAXED);
    return NULL;
}

__attribute__((noipa)) static void steady(uint64_t tag) {
    callscope_capture(tag);
    __asm__ volatile("");
}

static void *capture_meanwhile(void *argument) {
    while (loading) {
        steady(1);
        usleep(200);
    }
    return argument;
}

static void threads(void) {
    pthread_t all[10];
    loading = 8;
    for (intptr_t i = 0; i < 10; i++)
        pthread_create(&all[i], NULL, i < 8 ? churn : capture_meanwhile, (void *)i);
    for (int i = 0; i < 10; i++)
        pthread_join(all[i], NULL);
}

NOINLINE static int deep(int depth, uint64_t tag) {
    if (!depth) {
        callscope_capture(tag);
        return 0;
    }
    int result = deep(depth - 1, tag) + 1;
    __asm__ volatile("");
    return result;
}

static void in_handler(int number) {
    callscope_capture((uint64_t)number);
    __asm__ volatile("");
}

NOINLINE static void interrupted(int number) {
    raise(number);
    __asm__ volatile("");
}

static ucontext_t back, there;

static void coroutine(void) {
    deep(3, 5);
    swapcontext(&there, &back);
}

NOINLINE static void realigned(void) {
    volatile char block[64] __attribute__((aligned(64)));
    block[0] = 1;
    deep(2, 6);
    __asm__ volatile("" : : "r"(block) : "memory");
}

NOINLINE static void other_stacks(void) {
    static char alternate[65536], coroutine_stack[65536];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = in_handler, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    action.sa_flags = 0;
    sigaction(SIGUSR2, &action, NULL);
    interrupted(SIGUSR1);
    interrupted(SIGUSR2);
    getcontext(&there);
    there.uc_stack.ss_sp = coroutine_stack;
    there.uc_stack.ss_size = sizeof coroutine_stack;
    there.uc_link = &back;
    makecontext(&there, coroutine, 0);
    swapcontext(&back, &there);
    realigned();
}

// What callscope_capture meets on a stack that somebody has overwritten.
NOINLINE static void corrupt(unsigned seed) {
    uint64_t saved[64];
    volatile uint64_t *here = __builtin_frame_address(0);
    for (int i = 0; i < 64; i++)
        saved[i] = here[i];
    srand(seed);
    for (int i = 0; i < 64; i++) {
        uint64_t random = (uint64_t)rand() << 33 ^ (uint64_t)rand() << 10 ^ (uint64_t)rand();
        if (seed % 4 == 0)
            here[i] = random;
        else if (seed % 4 == 1)
            here[i] = (uint64_t)here + random % 4096 - 1024;
        else if (seed % 4 == 2)
            here[i] = random & 1 ? (uint64_t)corrupt + random % 256 : random & 0x7fffffffffff;
        else if (i % 3 == rand() % 3)
            here[i] ^= 1ull << rand() % 64;
    }
    callscope_capture(seed);
    for (int i = 0; i < 64; i++)
        here[i] = saved[i];
}

static volatile int waiting;

static void *wait_often(void *argument) {
    long *interrupted = argument;
    while (waiting) {
        struct timespec time = {0, 300000};
        for (volatile int i = 0; i < 100000; i++)
            ;
        *interrupted += nanosleep(&time, NULL) != 0;
    }
    return NULL;
}

// A thread that works and one that also waits: how often a wait was cut.
static void waits(void) {
    pthread_t thread;
    long interrupted = 0;
    waiting = 1;
    pthread_create(&thread, NULL, wait_often, &interrupted);
    struct timespec used;
    do {
        for (volatile int i = 0; i < 100000; i++)
            ;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    } while (used.tv_sec < 1);
    waiting = 0;
    pthread_join(thread, NULL);
    printf("%ld\n", interrupted);
}

int main(int count, char **arguments) {
    const char *mode = count > 1 ? arguments[1] : "";
    if (!callscope_capture)
        return 3;
    for (int i = 2; i < count && path_count < 16; i++)
        paths[path_count++] = arguments[i];
    if (!strcmp(mode, "reload"))
        reload(paths[0], paths[1]);
    else if (!strcmp(mode, "threads")) {
        rounds = atoi(paths[--path_count]);
        threads();
    } else if (!strcmp(mode, "deep"))
        printf("%d\n", deep(atoi(paths[0]), 4));
    else if (!strcmp(mode, "other"))
        other_stacks();
    else if (!strcmp(mode, "waits"))
        waits();
    else if (!strcmp(mode, "corrupt"))
        for (unsigned seed = 0; seed < (unsigned)atoi(paths[0]); seed++)
            corrupt(seed);
    return 0;
}

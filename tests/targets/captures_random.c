// Random call trees of functions with frames of all sorts, captured at random, by the program and in signal handlers:
// captures_random CAPTURES SEED. Prints a line a capture of its own: the tag, and the functions from the innermost.
#define _GNU_SOURCE
#include <alloca.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

extern void callscope_capture(uint64_t tag) __attribute__((weak));

typedef long function(int depth, long a, long b);

static uint64_t seed;
static char path[256];
static int length;
static long captures, wanted;

static unsigned next(unsigned below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % below;
}

__attribute__((noipa)) static void capture(void) {
    if (captures < wanted) {
        callscope_capture((uint64_t)++captures);
        printf("%ld ", captures);
        for (int i = length; i > 0; i--)
            putchar(path[i - 1]);
        putchar('\n');
    }
}

__attribute__((noipa)) static long call(int depth, long a, long b);

// Frames addressed by rsp, and by rbp; of many sizes; that leave rbp alone, keep it, and use it for something else.
#define BODY(LETTER, LOCALS)                                                                                           \
    path[length++] = LETTER;                                                                                           \
    volatile long locals[LOCALS];                                                                                      \
    long sum = 0;                                                                                                      \
    for (unsigned i = next(4); i; i--) {                                                                               \
        locals[i % LOCALS] = a;                                                                                        \
        if (!next(3))                                                                                                  \
            capture();                                                                                                 \
        else if (depth)                                                                                                \
            sum += call(depth - 1, a + (long)i, b ^ locals[i % LOCALS]);                                               \
        if (!next(5))                                                                                                  \
            capture();                                                                                                 \
    }                                                                                                                  \
    length--;                                                                                                          \
    return sum + a + b;

#define PLAIN __attribute__((noipa, optimize("omit-frame-pointer")))
#define FRAMED __attribute__((noipa, optimize("no-omit-frame-pointer")))

PLAIN static long a_small(int depth, long a, long b){BODY('a', 2)} PLAIN
    static long b_large(int depth, long a, long b){BODY('b', 300)} FRAMED
    static long c_framed(int depth, long a, long b){BODY('c', 5)} PLAIN
    static long d_variable(int depth, long a, long b) {
    char *more = alloca(16 + next(200));
    more[0] = 1;
    __asm__ volatile("" : : "r"(more) : "memory");
    BODY('d', 3)
}
// The same call site reaches this and a_small with frames of other layouts.
PLAIN static long e_clobbers(int depth, long a, long b) {
    __asm__ volatile("" : : : "rbx", "r12", "r13", "r14", "r15");
    BODY('e', 2)
}
FRAMED static long f_realigned(int depth, long a, long b) {
    volatile char block[64] __attribute__((aligned(64)));
    block[0] = 1;
    BODY('f', 4)
}

static function *const all[] = {a_small, b_large, c_framed, d_variable, e_clobbers, f_realigned};
static unsigned kinds;

PLAIN static long call(int depth, long a, long b) {
    long result = all[next(kinds)](depth, a, b);
    __asm__ volatile("");
    return result;
}

static void tick(int number) {
    (void)number;
    callscope_capture(1ull << 40);
}

int main(int count, char **arguments) {
    if (count < 3 || !callscope_capture)
        return 3;
    wanted = atol(arguments[1]);
    seed = (uint64_t)atol(arguments[2]);
    kinds = seed % 2 ? 6 : 5; // realigned frames are walked in another way
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {{0, 150}, {0, 150}};
    setitimer(ITIMER_REAL, &often, NULL);
    while (captures < wanted)
        call(30, 1, 2);
    return 0;
}

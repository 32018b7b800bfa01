// Dies in the middle of its work. `death HOW BATCHES`: before each batch of 100 calls it writes the number of calls
// made so far; a tracer must have at least those. HOW: kill, abort, exit, fault, stack, thread.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

static const char *how;
static long batches;

NOINLINE static long counted(long n) {
    __asm__ volatile("" : "+r"(n) : : "memory");
    return n * 3;
}

NOINLINE static int overflow(int n) {
    volatile char room[1 << 14];
    room[0] = (char)n;
    return overflow(n + 1) + room[0];
}

NOINLINE static void die(void) {
    if (!strcmp(how, "kill"))
        kill(getpid(), SIGKILL);
    if (!strcmp(how, "abort"))
        abort();
    if (!strcmp(how, "exit"))
        _exit(7);
    if (!strcmp(how, "fault"))
        *(volatile int *)8 = 1;
    if (!strcmp(how, "stack"))
        overflow(0);
}

NOINLINE static void run(void) {
    long made = 0;
    char text[32];
    for (long batch = 0; batch < batches; batch++) {
        for (int i = 0; i < 100; i++, made++)
            counted(i);
        int length = snprintf(text, sizeof text, "%ld\n", made);
        if (write(1, text, (size_t)length) != length)
            _exit(1);
    }
    die();
}

static void *in_thread(void *argument) {
    how = "kill";
    run();
    return argument;
}

int main(int argc, char **argv) {
    how = argc > 1 ? argv[1] : "exit";
    batches = argc > 2 ? atol(argv[2]) : 10;
    if (!strcmp(how, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, in_thread, NULL);
        for (;;)
            counted(1);
    }
    run();
    return 0;
}

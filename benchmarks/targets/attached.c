/* Threads that call and sleep. For each line of its input, one measures a call: prints nanoseconds. attached THREADS */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 200

__attribute__((noinline)) static int fib(int n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static volatile int sink;

static void *sleeps(void *unused) {
    for (;;) {
        sink = fib(8);
        usleep(5000);
    }
    return unused;
}

/* The shortest of many: whoever else uses the processor is left out. fib(12) makes 465 calls. */
static double measure(void) {
    double best = 1e18;
    for (int i = 0; i < ROUNDS; i++) {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        sink = fib(12);
        clock_gettime(CLOCK_MONOTONIC, &after);
        double took = (double)(after.tv_sec - before.tv_sec) * 1e9 + (double)(after.tv_nsec - before.tv_nsec);
        best = took < best ? took : best;
    }
    return best / 465;
}

int main(int count, char **arguments) {
    pthread_t thread;
    for (int i = 1; count > 1 && i < atoi(arguments[1]); i++)
        if (pthread_create(&thread, NULL, sleeps, NULL))
            return 1;
    while (getchar() != EOF) {
        printf("%.3f\n", measure());
        fflush(stdout);
    }
    return 0;
}

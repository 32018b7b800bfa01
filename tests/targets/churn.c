/* Threads that come and go, beside one that stays; or signals, or a child that crashes. A burst is ten calls of work().
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

volatile int sink, over;
static volatile sig_atomic_t got;

__attribute__((noinline)) void work(int i) {
    sink += i;
}

__attribute__((noinline)) void burst(void) {
    for (int i = 0; i < 10; i++)
        work(i);
}

static void *short_lived(void *none) {
    burst();
    return none;
}

static void *steady(void *none) {
    pthread_setname_np(pthread_self(), "steady");
    while (!over) {
        burst();
        usleep(20000);
    }
    return none;
}

static void on_signal(int number) {
    (void)number;
    got++;
}

/* `count` threads, `together` at a time. */
static void churn(int count, int together) {
    pthread_t stays, *threads = calloc((size_t)together, sizeof *threads);
    pthread_create(&stays, NULL, steady, NULL);
    for (int done = 0; done < count && access("stop", F_OK); done += together) {
        for (int i = 0; i < together; i++)
            pthread_create(&threads[i], NULL, short_lived, NULL);
        for (int i = 0; i < together; i++)
            pthread_join(threads[i], NULL);
    }
    over = 1;
    pthread_join(stays, NULL);
    free(threads);
}

/* Bursts for `tenths` of a second, then many at once. */
static void paced(int tenths) {
    for (int i = 0; i < tenths * 10 && access("stop", F_OK); i++) {
        for (int k = 0; k < 500; k++)
            burst();
        usleep(10000);
    }
}

static void signalled(void) {
    for (int i = 0; i < 40; i++) {
        burst();
        usleep(10000);
        if (i == 10 || i == 30)
            kill(getpid(), SIGUSR2);
    }
    void (*before)(int) = signal(SIGUSR2, SIG_DFL);
    printf("got %d, was %s\n", (int)got,
           before == on_signal ? "own"
           : before == SIG_IGN ? "ignored"
           : before == SIG_DFL ? "default"
                               : "another");
}

static void crashing_child(void) {
    int status = 0;
    if (fork() == 0) {
        burst();
        raise(SIGSEGV);
    }
    wait(&status);
    for (int i = 0; i < 300000; i++)
        burst();
    printf("child ended by signal %d\n", WTERMSIG(status));
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "own"))
        signal(SIGUSR2, on_signal);
    if (!strcmp(mode, "ignored"))
        signal(SIGUSR2, SIG_IGN);
    if (!strcmp(mode, "threads") && argc == 4)
        churn(atoi(argv[2]), atoi(argv[3]));
    else if (!strcmp(mode, "paced") && argc == 3)
        paced(atoi(argv[2]));
    else if (!strcmp(mode, "crash"))
        crashing_child();
    else
        signalled();
    puts("done");
    return 5;
}

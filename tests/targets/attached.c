/* Runs until standard input says so: threads that call work() and wait in every way, and check what waiting answers.
 *
 * attached THREADS: prints "ready", and at the end the number of rounds and of wrong answers. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_int ended;
static atomic_long rounds, wrong, signals;

__attribute__((noinline)) int fib(int n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

/* 177 calls of fib, one of work. */
__attribute__((noinline)) int work(int n) {
    return fib(10) + n;
}

static void expect(int condition, const char *what) {
    if (condition)
        return;
    wrong++;
    fprintf(stderr, "wrong: %s (errno %d)\n", what, errno);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *sleeps(void *unused) {
    (void)unused;
    while (!ended) {
        struct timespec time = {0, 3000000};
        double begin = now();
        errno = 77;
        expect(!nanosleep(&time, NULL) && errno == 77, "nanosleep");
        expect(now() - begin >= 0.003, "nanosleep was short");
        expect(poll(NULL, 0, 2) == 0 && errno == 77, "poll");
        work(1);
        rounds++;
    }
    return NULL;
}

static void *reads(void *unused) {
    (void)unused;
    int ends[2], waiter = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    expect(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
    expect(!epoll_ctl(waiter, EPOLL_CTL_ADD, ends[0], &event), "epoll_ctl");
    while (!ended) {
        char byte = 0;
        errno = 78;
        expect(epoll_wait(waiter, &event, 1, 4) == 0 && errno == 78, "epoll_wait");
        expect(write(ends[1], "x", 1) == 1 && epoll_wait(waiter, &event, 1, -1) == 1, "epoll_wait with data");
        expect(read(ends[0], &byte, 1) == 1 && byte == 'x' && errno == 78, "read");
        work(2);
        rounds++;
    }
    return NULL;
}

static sem_t semaphore;

static void *posts(void *unused) {
    (void)unused;
    while (!ended) {
        sem_post(&semaphore);
        usleep(1500);
        rounds++;
    }
    sem_post(&semaphore);
    return NULL;
}

static void *waits(void *unused) {
    (void)unused;
    while (!ended) {
        expect(!sem_wait(&semaphore), "sem_wait");
        work(3);
        rounds++;
    }
    sem_post(&semaphore);
    return NULL;
}

/* Signals by SIGALRM arrive here: no other thread's waits are cut short by them. */
static void *computes(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    double sum = 0;
    while (!ended) {
        double before = sum;
        sum += 0.5;
        expect(work(4) == 59, "work");
        char *memory = malloc(1000 + (size_t)(rounds % 5000));
        memory[0] = 1;
        free(memory);
        expect(sum == before + 0.5, "vector registers");
        if (rounds++ % 16 == 0)
            usleep(1000);
    }
    return NULL;
}

static void on_alarm(int number) {
    (void)number;
    int kept = errno;
    work(5);
    signals++;
    errno = kept;
}

int main(int count, char **arguments) {
    static void *(*const kinds[])(void *) = {computes, sleeps, reads, posts, waits};
    int threads = count > 1 ? atoi(arguments[1]) : 5;
    pthread_t *started = calloc((size_t)threads, sizeof *started);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sigaction(SIGALRM, &action, NULL);
    sem_init(&semaphore, 0, 0);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&started[i], &small, kinds[i % 5], NULL))
            return 1;
    struct itimerval interval = {{0, 700}, {0, 700}};
    setitimer(ITIMER_REAL, &interval, NULL);
    puts("ready");
    fflush(stdout);
    getchar();
    ended = 1;
    for (int i = 0; i < threads; i++)
        pthread_join(started[i], NULL);
    printf("%d %ld\n", rounds > 0 && signals > 0, (long)wrong);
    return 0;
}

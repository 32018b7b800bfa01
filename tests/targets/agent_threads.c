/* Threads, signals and stacks. `agent_threads SCENE NUMBER`. */
#include "agent_work.h"

#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

/* Recursion of a known depth; the deepest call does nothing. */
__attribute__((noinline)) int deep(int n) {
    volatile int rest = n;
    if (rest > 0)
        rest = deep(rest - 1);
    return rest;
}

static void *work_in_thread(void *times) {
    pthread_setname_np(pthread_self(), "worker");
    work_times((int)(intptr_t)times);
    return NULL;
}

static void together(int threads) {
    pthread_t thread[512];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], &small, work_in_thread, (void *)(intptr_t)(100 + i)))
            exit(3);
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
}

static void one_after_another(int threads) {
    pthread_t thread;
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&thread, NULL, work_in_thread, (void *)(intptr_t)10))
            exit(3);
        pthread_join(thread, NULL);
    }
}

static sem_t turn[3];

static void wait_turn(int which) {
    while (sem_wait(&turn[which]))
        ;
}

static void *work_once(void *none) {
    work(1);
    sem_post(&turn[0]);
    wait_turn(1);
    return none;
}

/* Two rounds of calls, in its turn each. */
static void *work_twice(void *times) {
    for (int round = 0; round < 2; round++) {
        work_times((int)(intptr_t)times);
        sem_post(&turn[0]);
        wait_turn(2);
    }
    return NULL;
}

/* A thread ends while another is recorded already, which goes on; then a third begins. */
static void relay(int times) {
    pthread_t first, second, third;
    for (int i = 0; i < 3; i++)
        sem_init(&turn[i], 0, 0);
    pthread_create(&first, NULL, work_once, NULL);
    wait_turn(0);
    pthread_create(&second, NULL, work_twice, (void *)(intptr_t)times);
    wait_turn(0);
    sem_post(&turn[1]);
    pthread_join(first, NULL);
    sem_post(&turn[2]);
    wait_turn(0);
    pthread_create(&third, NULL, work_in_thread, (void *)(intptr_t)times);
    pthread_join(third, NULL);
    sem_post(&turn[2]);
    pthread_join(second, NULL);
}

static volatile int handled;

static void on_signal(int number) {
    (void)number;
    work(0);
    handled++;
}

/* Interrupt the hot path at random places, on another stack. */
static void signal_storm(int wanted) {
    static char stack[16384];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_RESTART};
    struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    int normal = 0;
    sigaltstack(&alternate, NULL);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    while (handled < wanted) {
        work(1);
        normal++;
    }
    setitimer(ITIMER_REAL, &never, NULL);
    printf("%d\n", normal + handled);
}

static volatile int cancel_now;

static void *work_for_ever(void *none) {
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    for (;;) {
        work(2);
        cancel_now = 1;
    }
    return none;
}

/* The cancellation unwinds from wherever the thread is, a trampoline included. */
static void cancel(int threads) {
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        void *result;
        cancel_now = 0;
        pthread_create(&thread, NULL, work_for_ever, NULL);
        while (!cancel_now)
            ;
        usleep(i * 37 % 500);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        if (result != PTHREAD_CANCELED)
            exit(4);
    }
}

static jmp_buf back;

__attribute__((noinline)) int leave(int n) {
    volatile int x = n;
    if (x)
        longjmp(back, 1);
    return x + 1;
}

static void jumps(int times) {
    for (volatile int i = 0; i < times; i++)
        if (!setjmp(back))
            leave(i + 1);
    deep(3);
}

static ucontext_t main_context, coroutine_context;

static void coroutine(void) {
    for (;;) {
        deep(4);
        swapcontext(&coroutine_context, &main_context);
    }
}

static void coroutines(int times) {
    static char stack[65536];
    getcontext(&coroutine_context);
    coroutine_context.uc_stack = (stack_t){.ss_sp = stack, .ss_size = sizeof stack};
    makecontext(&coroutine_context, coroutine, 0);
    for (int i = 0; i < times; i++) {
        deep(4);
        swapcontext(&main_context, &coroutine_context);
    }
}

int main(int count, char **words) {
    int number = count > 2 ? atoi(words[2]) : 0;
    const char *scene = count > 1 ? words[1] : "";
    if (!strcmp(scene, "together"))
        together(number);
    else if (!strcmp(scene, "churn"))
        one_after_another(number);
    else if (!strcmp(scene, "relay"))
        relay(number);
    else if (!strcmp(scene, "signals"))
        signal_storm(number);
    else if (!strcmp(scene, "cancel"))
        cancel(number);
    else if (!strcmp(scene, "deep"))
        deep(number);
    else if (!strcmp(scene, "jumps"))
        jumps(number);
    else if (!strcmp(scene, "coroutines"))
        coroutines(number);
    else if (!strcmp(scene, "many"))
        work_times(number);
    else
        return 2;
    return 0;
}

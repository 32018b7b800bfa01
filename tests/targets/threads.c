// Threads: many at once, cancelled at any point and at points of their choosing, ended by pthread_exit, with cleanup
// handlers and destructors of thread-specific data.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
#define COUNT 200

static pthread_barrier_t barrier;
static pthread_key_t key;
static long cleaned, destroyed;

NOINLINE static long fibonacci(long n) {
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static void *count(void *argument) {
    pthread_barrier_wait(&barrier);
    return (void *)(fibonacci(14) + (long)argument);
}

static void clean(void *argument) {
    __atomic_fetch_add(&cleaned, (long)argument, __ATOMIC_RELAXED);
    fibonacci(5);
}

static void destroy(void *argument) {
    __atomic_fetch_add(&destroyed, (long)argument, __ATOMIC_RELAXED);
    fibonacci(6);
}

static void *spin(void *argument) {
    (void)argument;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    for (;;)
        fibonacci(8);
}

static void *wait_and_clean(void *argument) {
    pthread_cleanup_push(clean, argument);
    pthread_setspecific(key, argument);
    for (;;) {
        fibonacci(4);
        usleep(50);
    }
    pthread_cleanup_pop(1);
    return NULL;
}

NOINLINE static void leave(long depth, void *result) {
    pthread_cleanup_push(clean, (void *)1);
    if (depth == 0)
        pthread_exit(result);
    leave(depth - 1, result);
    pthread_cleanup_pop(0);
}

static void *exit_deep(void *argument) {
    pthread_setspecific(key, argument);
    leave(10, argument);
    return NULL;
}

int main(void) {
    static pthread_t threads[COUNT];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 16);
    pthread_key_create(&key, destroy);
    pthread_barrier_init(&barrier, NULL, COUNT);
    long sum = 0;
    void *result;
    for (long i = 0; i < COUNT; i++)
        if (pthread_create(&threads[i], &small, count, (void *)i))
            return 1;
    for (int i = 0; i < COUNT; i++) {
        pthread_join(threads[i], &result);
        sum += (long)result;
    }
    printf("threads %ld\n", sum);
    int cancelled = 0;
    for (int i = 0; i < 60; i++) {
        pthread_create(&threads[0], NULL, i % 2 ? spin : wait_and_clean, (void *)10);
        usleep(300);
        pthread_cancel(threads[0]);
        pthread_join(threads[0], &result);
        cancelled += result == PTHREAD_CANCELED;
    }
    printf("cancelled %d, cleaned by some %d\n", cancelled, cleaned > 0);
    cleaned = destroyed = sum = 0;
    for (long i = 1; i <= 50; i++) {
        pthread_create(&threads[0], NULL, exit_deep, (void *)i);
        pthread_join(threads[0], &result);
        sum += (long)result;
    }
    printf("left %ld, cleaned %ld, destroyed %ld\n", sum, cleaned, destroyed);
    return 0;
}

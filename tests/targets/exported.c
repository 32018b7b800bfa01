/* A program to export: threads that make threads, tail jumps, recursion, markers, arguments of several types. */
#include "callscope.h"
#include <pthread.h>
#include <stdio.h>

__attribute__((noinline)) double half(double value, const char *name, int *place) {
    *place += name[0];
    return value / 2;
}

__attribute__((noinline)) int leaf(int number) {
    volatile int sum = 0;
    for (int i = 0; i < number % 50; i++)
        sum += i;
    return sum;
}

__attribute__((noinline)) int jumper(int number) {
    volatile int before = number;
    return leaf(before + 1);
}

__attribute__((noinline)) int fib(int number) {
    return number < 2 ? jumper(number) : fib(number - 1) + fib(number - 2);
}

static void *inner(void *given) {
    callscope_marker("in the \xc3\xaenner thread");
    return (void *)(long)fib(*(int *)given);
}

static void *outer(void *given) {
    pthread_t thread;
    pthread_create(&thread, NULL, inner, given);
    fib(6);
    pthread_join(thread, NULL);
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    int number = 8, place = 0;
    callscope_marker("before");
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, outer, &number);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    double found = half(5, "five", &place);
    callscope_marker("<after>");
    printf("%d %d %.1f\n", fib(12), place, found);
    return 0;
}

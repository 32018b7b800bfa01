/* A program to look at: calls some levels deep, arguments, two threads. */
#include <pthread.h>
#include <stdio.h>

struct item {
    const char *name;
    int weight;
};

static const struct item items[] = {{"apple", 3}, {"pear", 5}, {"plum", 2}};

__attribute__((noinline)) int weigh(const struct item *item, int times) {
    volatile int sum = 0;
    for (int i = 0; i < times; i++)
        sum += item->weight;
    return sum;
}

__attribute__((noinline)) int weigh_all(int times) {
    int sum = 0;
    for (int i = 0; i < 3; i++)
        sum += weigh(&items[i], times);
    return sum;
}

__attribute__((noinline)) int search(int depth, const char *what) {
    if (depth == 0)
        return weigh_all(50);
    return search(depth - 1, what) + search(depth - 1, what);
}

static void *worker(void *given) {
    search(4, given);
    return NULL;
}

int main(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, worker, "fruit");
    printf("%d\n", search(7, "tree"));
    pthread_join(thread, NULL);
    return 0;
}

// Calls of tiny functions for as many milliseconds as it is told; prints how many rounds of a thousand there were.
#include <cstdio>
#include <cstdlib>
#include <ctime>

#define MARK(n) __asm__ volatile("nopl %c0(%%rax)" : : "i"(0x1000 + n)) // no two functions are alike, or too short

struct Counter {
    long value;
    long get() const {
        MARK(1);
        return value;
    }
    void set(long to) {
        MARK(2);
        value = to;
    }
};

static void step(Counter &counter) {
    counter.set(counter.get() + 1);
    MARK(3);
}

static void turn(Counter &counter) {
    for (int i = 0; i < 1000; i++)
        step(counter);
}

static long now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

int main(int count, char **words) {
    Counter counter{0};
    long rounds = 0, end = now() + (count > 1 ? atol(words[1]) : 1000);
    for (; now() < end; rounds++)
        turn(counter);
    printf("%ld rounds\n", rounds);
    return counter.value != rounds * 1000;
}

// Functions of a few instructions, called all the time: writes a line every so many rounds.
#include <cstdio>

#define MARK(n) __asm__ volatile("nopl %c0(%%rax)" : : "i"(0x1000 + n)) // no two functions are alike, or too short
#define TINY __attribute__((noinline))

struct Counter {
    long value;
    TINY long get() const {
        MARK(1);
        return value;
    }
    TINY void set(long to) {
        MARK(2);
        value = to;
    }
};

TINY static void step(Counter &counter, long by) {
    counter.set(counter.get() + by);
    MARK(3);
}

TINY static void turn(Counter &counter) {
    for (int i = 0; i < 1000000; i++)
        step(counter, i & 3);
}

int main() {
    Counter counter{0};
    for (int round = 0; round < 900; round++) {
        turn(counter);
        printf("%ld\n", counter.value);
        fflush(stdout);
    }
    return 0;
}

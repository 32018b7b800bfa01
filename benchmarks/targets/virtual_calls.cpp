// The cost of a recorded call site: prints nanoseconds per call of two virtual functions in turns.
#include <cstdio>
#include <cstdlib>
#include <ctime>

struct First {
    virtual long next(long value) {
        return value + 1;
    }
    virtual ~First() {}
};
struct Second : First {
    long next(long value) override {
        return value ^ 3;
    }
};

__attribute__((noinline)) long loop(First *const *objects, long count) {
    long sum = 0;
    for (long i = 0; i < count; i++)
        sum += objects[i & 1]->next(i) * 3;
    return sum;
}

static double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

int main() {
    First first;
    Second second;
    First *objects[] = {&first, &second};
    const long count = 20000000;
    long sum = loop(objects, 1000);
    double begin = now();
    sum += loop(objects, count);
    double end = now();
    std::printf("%ld ns_per_call %.3f\n", sum, (end - begin) / count);
}

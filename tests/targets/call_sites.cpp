// Calls that leave what is traced when only the functions named caller_* are: through imports, virtual functions and
// pointers, one of which throws. Its counts are those of tests/integration/test_call_sites.py.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>

#define NOINLINE __attribute__((noinline))

struct Shape {
    virtual long area(long scale) const = 0;
    virtual ~Shape() {}
};
struct Square : Shape {
    NOINLINE long area(long scale) const override { return scale * scale; }
};
struct Circle : Shape {
    NOINLINE long area(long scale) const override { return 3 * scale; }
};

NOINLINE static long doubled(long value) {
    return 2 * value;
}
NOINLINE static long refused(long value) {
    if (value >= 0)
        throw std::runtime_error("refused");
    return value;
}
NOINLINE static long slow(long value) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    return value;
}
NOINLINE static int order(const void *a, const void *b) {
    return *static_cast<const int *>(a) - *static_cast<const int *>(b);
}

using Function = long (*)(long);
static Function volatile functions[] = {doubled, refused, slow};

NOINLINE long caller_virtual(const Shape *const *shapes, int count) {
    long sum = 0;
    for (int i = 0; i < count; i++)
        sum += shapes[i % 3 == 0]->area(i);
    return sum;
}

NOINLINE long caller_pointer(int which, long value) {
    return functions[which](value) + 1;
}

NOINLINE long caller_throwing(int count) {
    long caught = 0;
    for (int i = 0; i < count; i++) {
        try {
            caught += functions[1](i);
        } catch (const std::runtime_error &error) {
            caught += static_cast<long>(strlen(error.what()));
        }
    }
    return caught;
}

NOINLINE long caller_import(char **words, int count) {
    long sum = 0;
    for (int i = 0; i < count; i++)
        sum += strtol(words[i % 2], nullptr, 10) + 1;
    return sum;
}

NOINLINE int caller_sorting(int *numbers, int count) {
    qsort(numbers, static_cast<size_t>(count), sizeof *numbers, order);
    return numbers[0];
}

int main() {
    Square square;
    Circle circle;
    const Shape *shapes[] = {&square, &circle};
    char first[] = "12", second[] = "30";
    char *words[] = {first, second};
    int numbers[] = {5, 3, 4, 1, 2};
    long sum = caller_virtual(shapes, 300);
    for (int i = 0; i < 50; i++)
        sum += caller_pointer(0, i);
    sum += caller_pointer(2, 1) + caller_throwing(20) + caller_import(words, 40) + caller_sorting(numbers, 5);
    printf("%ld\n", sum);
    return 7;
}

// Exceptions through many frames: rethrown, nested, from destructors, through qsort and std::function, across threads,
// with forced unwinding by pthread_exit, and one that nobody catches when an argument is given.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>

#define NOINLINE __attribute__((noinline))

static thread_local int live;

struct Counted {
    Counted() {
        live++;
    }
    ~Counted() {
        live--;
    }
};

NOINLINE static int deep(int n) {
    Counted counted;
    if (n == 0)
        throw std::runtime_error("deep");
    return deep(n - 1) + 1;
}

NOINLINE static int rethrow(int n) {
    Counted counted;
    try {
        return n == 0 ? deep(3) : rethrow(n - 1);
    } catch (std::logic_error &) {
        return -1;
    } catch (std::exception &) {
        if (n % 3 == 0)
            throw;
        std::throw_with_nested(std::out_of_range("level " + std::to_string(n)));
    }
}

NOINLINE static std::string describe(const std::exception &error) {
    try {
        std::rethrow_if_nested(error);
    } catch (const std::exception &inner) {
        return std::string(error.what()) + " < " + describe(inner);
    }
    return error.what();
}

struct Careful {
    ~Careful() {
        try {
            deep(5);
        } catch (std::exception &) {
            live += 100;
        }
    }
};

NOINLINE static void throws_over_careful() {
    Careful careful;
    deep(2);
}

static int comparisons;

static int compare(const void *a, const void *b) {
    if (++comparisons % 50 == 0)
        throw comparisons;
    return *(const int *)a - *(const int *)b;
}

NOINLINE static int sort_until_thrown() {
    int values[64];
    for (int i = 0; i < 64; i++)
        values[i] = i * 37 % 64;
    try {
        qsort(values, 64, sizeof *values, compare);
    } catch (int count) {
        return count;
    }
    return 0;
}

struct Base {
    virtual ~Base() = default;
    virtual int work(int n) {
        return n;
    }
};

struct Member {
    explicit Member(int n) {
        if (n % 2)
            throw n;
    }
};

struct Derived : Base, Counted {
    Member member;
    explicit Derived(int n) try : member(n) {
    } catch (int &value) {
        value += 1000;
    }
    int work(int n) override {
        return deep(n);
    }
};

NOINLINE static void *leave(void *) {
    Counted counted;
    struct Note {
        ~Note() {
            live += 1000;
        }
    } note;
    try {
        pthread_exit((void *)(long)live);
    } catch (...) {
        live += 7;
        throw;
    }
}

NOINLINE static void uncaught(int n) {
    Counted counted;
    if (n == 0)
        throw std::runtime_error("nobody catches this");
    uncaught(n - 1);
}

int main(int argc, char **) {
    long sum = 0;
    for (int i = 0; i < 3000; i++) {
        try {
            sum += deep(i % 25);
        } catch (const std::exception &) {
            sum += i;
        }
    }
    printf("deep %ld, live %d\n", sum, live);
    for (int i = 0; i < 8; i++) {
        try {
            rethrow(i);
        } catch (const std::exception &error) {
            printf("%s, live %d\n", describe(error).c_str(), live);
        }
    }
    for (int i = 0; i < 100; i++) {
        try {
            throws_over_careful();
        } catch (std::exception &) {
            sum++;
        }
    }
    printf("careful %ld, live %d\n", sum, live);
    for (int i = 0; i < 5; i++)
        printf("sort %d\n", sort_until_thrown());
    for (int i = 0; i < 4; i++) {
        try {
            std::unique_ptr<Base> object(new Derived(i));
            std::function<int(int)> call = [&object](int n) { return object->work(n); };
            sum += call(i);
        } catch (int value) {
            printf("constructor threw %d, live %d\n", value, live);
        } catch (std::exception &error) {
            printf("work threw %s, live %d\n", error.what(), live);
        }
    }
    std::vector<std::thread> threads;
    std::vector<std::exception_ptr> errors(8);
    for (int i = 0; i < 8; i++)
        threads.emplace_back([&errors, i] {
            try {
                for (int k = 0; k < 500; k++)
                    try {
                        deep(k % 20);
                    } catch (std::exception &) {
                    }
                throw i;
            } catch (...) {
                errors[i] = std::current_exception();
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    for (std::exception_ptr &error : errors) {
        try {
            std::rethrow_exception(error);
        } catch (int i) {
            sum += i;
        }
    }
    pthread_t thread;
    void *result;
    pthread_create(&thread, nullptr, leave, nullptr);
    pthread_join(thread, &result);
    printf("threads %ld, left with %ld\n", sum, (long)result);
    try {
        std::map<int, std::string>().at(5);
    } catch (std::out_of_range &) {
        puts("out of range");
    }
    fflush(stdout);
    if (argc > 1)
        uncaught(6);
    return 3;
}

// Threads that call, throw, lock, wait and are sent signals until standard input ends. live_threads COUNT: prints "ready",
// and at the end whether anything was done, and how many results were wrong.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static std::atomic<bool> ended;
static std::atomic<long> rounds, wrong, signals;

struct Refused : std::runtime_error {
    int left;
    explicit Refused(int n) : std::runtime_error("refused"), left(n) {}
};

__attribute__((noinline)) static int descend(int n) {
    std::string kept(40, 'x'); // to be destroyed on the way out
    if (n == 0)
        throw Refused(n);
    return descend(n - 1) + (int)kept.size();
}

__attribute__((noinline)) static int caught(int n) {
    try {
        return descend(n);
    } catch (const Refused &refused) {
        return refused.left + n;
    }
}

__attribute__((noinline)) static int fib(int n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static void expect(bool right) {
    wrong += !right;
}

static void on_signal(int) {
    signals++;
    expect(fib(5) == 5);
}

static std::mutex lock;
static std::condition_variable changed;
static std::deque<int> queue;

static void compute(int own) {
    std::map<std::string, int> words;
    while (!ended) {
        expect(fib(9) == 34 && caught(own % 20) == own % 20);
        words[std::to_string(rounds % 100)]++;
        rounds++;
        usleep(2000);
    }
}

static void produce(int) {
    while (!ended) {
        {
            std::lock_guard<std::mutex> held(lock);
            if (queue.size() < 1000)
                queue.push_back(7);
        }
        changed.notify_one();
        usleep(1000);
        rounds++;
    }
}

static void consume(int) {
    while (!ended) {
        std::unique_lock<std::mutex> held(lock);
        if (!changed.wait_for(held, std::chrono::milliseconds(20), [] { return !queue.empty(); }))
            continue;
        int got = queue.front();
        queue.pop_front();
        held.unlock();
        expect(got == 7 && caught(got) == 7);
        rounds++;
    }
}

static void sleep_long(int) {
    while (!ended) {
        timespec time = {0, 5000000};
        while (nanosleep(&time, &time))
            ;
        expect(fib(4) == 3);
    }
}

// Threads come and go.
static void beget(int own) {
    while (!ended) {
        int result = 0;
        std::thread child([&] { result = fib(own % 8); });
        child.join();
        static const int right[] = {0, 1, 1, 2, 3, 5, 8, 13};
        expect(result == right[own % 8]);
        usleep(4000);
    }
}

int main(int count, char **arguments) {
    void (*const kinds[])(int) = {compute, produce, consume, sleep_long, compute, sleep_long, beget};
    int threads = count > 1 ? atoi(arguments[1]) : 7;
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, nullptr);
    std::vector<std::thread> all;
    for (int i = 0; i < threads; i++)
        all.emplace_back(kinds[i % 7], i);
    std::thread sender([&all] {
        for (size_t i = 0; !ended; i++, usleep(500))
            pthread_kill(all[i % all.size()].native_handle(), SIGUSR1);
    });
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    ended = true;
    changed.notify_all();
    sender.join();
    for (auto &thread : all)
        thread.join();
    printf("%d %ld\n", rounds > 0 && signals > 0, wrong.load());
}

// Inlined templates, virtual calls, functions called through std::function, recursion, and signal handlers: deep ROUNDS.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

template <int N> struct Level {
    template <class F> static double go(F &f, double x) {
        return N % 3 == 0 ? Level<N - 1>::go(f, x + N) * 1.0001 : f(x) + Level<N - 1>::go(f, x * 0.5);
    }
};

template <> struct Level<0> {
    template <class F> static double go(F &f, double x) {
        return f(x);
    }
};

struct Shape {
    virtual ~Shape() = default;
    virtual double area(double scale) const = 0;
};

template <int N> struct Polygon : Shape {
    double area(double scale) const override {
        std::map<int, std::string> names;
        for (int i = 0; i < N; i++)
            names[i * 7 % N] = std::string(i % 40, 'x');
        double sum = 0;
        for (const auto &entry : names)
            sum += entry.second.size() * scale;
        return sum;
    }
};

static double total;

static void handler(int) {
    std::vector<int> values(300);
    for (int i = 0; i < 300; i++)
        values[i] = i * 7919 % 301;
    std::sort(values.begin(), values.end(), [](int a, int b) { return a > b; });
    total += values[3];
}

__attribute__((noinline)) static double recurse(int depth, const std::function<double(double)> &f) {
    if (depth)
        return recurse(depth - 1, f) + 1;
    double sum = 0;
    for (int i = 0; i < 40; i++)
        sum += f(i);
    return sum;
}

int main(int count, char **arguments) {
    std::signal(SIGUSR1, handler);
    const std::vector<Shape *> shapes{new Polygon<50>, new Polygon<90>, new Polygon<31>};
    const int rounds = count > 1 ? std::atoi(arguments[1]) : 200;
    for (int round = 0; round < rounds; round++) {
        auto f = [&](double x) {
            double sum = 0;
            for (const Shape *shape : shapes)
                sum += shape->area(x);
            return sum;
        };
        total += Level<24>::go(f, round) + recurse(round % 60, f);
        for (int i = 0; i < 30; i++)
            std::raise(SIGUSR1);
    }
    std::printf("%g\n", total);
}

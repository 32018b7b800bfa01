/* Knows which function calls which, inlined ones included: every function says so on a stack of its own. At the end a
 * line for each pair: caller, callee, times. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUIET __attribute__((no_instrument_function, noinline))
#define INLINE static inline __attribute__((always_inline))
#define OWN __attribute__((noinline))
#define HERE(name)                                                                                                     \
    int left __attribute__((cleanup(leave))) = enter(#name);                                                           \
    (void)left
enum { MOST_NAMES = 64, MOST_DEPTH = 4096 };

static const char *names[MOST_NAMES] = {"-"};
static int name_count = 1, stack[MOST_DEPTH], depth;
static long edges[MOST_NAMES][MOST_NAMES];

QUIET int enter(const char *name) {
    int number = 1;
    while (number < name_count && strcmp(names[number], name))
        number++;
    if (number == name_count)
        names[name_count++] = name;
    edges[stack[depth]][number]++;
    stack[++depth] = number;
    return depth;
}

QUIET void leave(const int *left) {
    depth = *left - 1;
}

static volatile int sink;
static jmp_buf back;

OWN int leaf(int n) {
    HERE(leaf);
    return n * 3 + sink;
}

INLINE int twice(int n) {
    HERE(twice);
    return 2 * n;
}

INLINE int add_twice(int a, int b) {
    HERE(add_twice);
    return twice(a) + twice(b);
}

INLINE int calls_leaf(int n) {
    HERE(calls_leaf);
    return leaf(n) + twice(leaf(n + 1));
}

int fibonacci(int n) {
    HERE(fibonacci);
    return n <= 1 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

OWN int seven(int a, int b, int c, int d, int e, int f, int g, int h) {
    HERE(seven);
    return a + b + c + d + e + f + add_twice(g, h);
}

INLINE int on_the_stack(int n) {
    HERE(on_the_stack);
    volatile char room[n + 1];
    room[n] = (char)n;
    return leaf(room[n]) + seven(1, 2, 3, 4, 5, 6, twice(n), leaf(n));
}

OWN int branches(int n) {
    HERE(branches);
    if (n % 3 == 0)
        return on_the_stack(n % 50 + 1);
    for (int i = 0; i < n % 4; i++)
        sink += calls_leaf(i);
    return n % 2 ? add_twice(n, 1) : 0;
}

OWN void nothing(int n) {
    HERE(nothing);
    if (n > 1000)
        sink = n;
}

INLINE void jumps(int n) {
    HERE(jumps);
    if (n % 2)
        longjmp(back, 1);
    sink += leaf(n);
}

OWN int jumper(int n) {
    HERE(jumper);
    jumps(n);
    return twice(n);
}

OWN int lands(int n) {
    HERE(lands);
    int before = depth;
    if (setjmp(back) == 0)
        sink += jumper(n);
    else
        depth = before;
    return twice(n);
}

int compare(const void *a, const void *b) {
    HERE(compare);
    return twice(*(const int *)a) - twice(*(const int *)b);
}

int main(void) {
    HERE(main);
    int values[50];
    for (int i = 0; i < 50; i++)
        values[i] = i * 37 % 50;
    for (int i = 0; i < 300; i++) {
        sink += branches(i) & 1;
        sink += lands(i) & 1;
        nothing(i);
    }
    qsort(values, 50, sizeof *values, compare);
    sink += fibonacci(15) & 1;
    for (int from = 0; from < name_count; from++)
        for (int to = 0; to < name_count; to++)
            if (edges[from][to])
                printf("%s %s %ld\n", names[from], names[to], edges[from][to]);
    return 0;
}

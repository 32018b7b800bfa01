/* 1,000 functions called in turn by two threads; the first says how long it was held up at most. `windows_pauses
 * SECONDS` prints a line "pause N", microseconds, for each fifth of a second. */
#include <stdio.h>
#include <stdlib.h>
#include <windows.h>

// clang-format off: it moves lines of macros without end
#define ONE(n)                                                                                                         \
    __attribute__((noinline)) static int work_##n(int value) {                                                         \
        volatile int sum = value * 3 + 0x##n;                                                                          \
        return sum;                                                                                                    \
    }
#define TEN(n) ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4) ONE(n##5) ONE(n##6) ONE(n##7) ONE(n##8) ONE(n##9)
#define HUNDRED(n) TEN(n##0) TEN(n##1) TEN(n##2) TEN(n##3) TEN(n##4) TEN(n##5) TEN(n##6) TEN(n##7) TEN(n##8) TEN(n##9)
HUNDRED(1)
HUNDRED(2)
HUNDRED(3)
HUNDRED(4) HUNDRED(5) HUNDRED(6) HUNDRED(7) HUNDRED(8) HUNDRED(9) HUNDRED(a)

#define NAME(n) work_##n,
#define TEN_NAMES(n)                                                                                                   \
    NAME(n##0) NAME(n##1) NAME(n##2) NAME(n##3) NAME(n##4) NAME(n##5) NAME(n##6) NAME(n##7) NAME(n##8) NAME(n##9)
#define HUNDRED_NAMES(n)                                                                                               \
    TEN_NAMES(n##0)                                                                                                    \
    TEN_NAMES(n##1)                                                                                                    \
    TEN_NAMES(n##2)                                                                                                    \
    TEN_NAMES(n##3) TEN_NAMES(n##4) TEN_NAMES(n##5) TEN_NAMES(n##6) TEN_NAMES(n##7) TEN_NAMES(n##8) TEN_NAMES(n##9)
    static int (*const all[])(int) = {
    HUNDRED_NAMES(1) HUNDRED_NAMES(2) HUNDRED_NAMES(3) HUNDRED_NAMES(4) HUNDRED_NAMES(5)
    HUNDRED_NAMES(6) HUNDRED_NAMES(7) HUNDRED_NAMES(8) HUNDRED_NAMES(9) HUNDRED_NAMES(a)
};
// clang-format on
#define COUNT (sizeof all / sizeof *all)

static LONGLONG microseconds(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return now.QuadPart * 1000000 / frequency.QuadPart;
}

static DWORD CALLBACK other(void *none) {
    for (unsigned i = 0;; i++) {
        all[i % COUNT]((int)i);
        Sleep(i % 64 == 0);
    }
    (void)none;
}

int main(int count, char **words) {
    LONGLONG end = microseconds() + 1000000ll * (count > 1 ? atoi(words[1]) : 1), last = microseconds(), longest = 0;
    CloseHandle(CreateThread(NULL, 0, other, NULL, 0, NULL));
    printf("ready\n");
    fflush(stdout);
    for (LONGLONG next = last + 200000; last < end;) {
        for (unsigned i = 0; i < 16; i++)
            all[(unsigned)(last + i) % COUNT]((int)i);
        LONGLONG now = microseconds();
        longest = now - last > longest ? now - last : longest;
        last = now;
        if (now < next)
            continue;
        printf("pause %lld\n", longest);
        fflush(stdout);
        longest = 0;
        last = microseconds();
        next = last + 200000;
    }
    return 0;
}

// Notices when its functions are patched: each looks at its own first byte.
// fragile MODE: crash, output, status, hang and two say what a patched function does; calm and random do not look.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_patched(const void *function) {
    return *(const unsigned char *)function == 0xe9 || *(const unsigned char *)function == 0xeb;
}

#define WORK(name, next)                                                                                               \
    __attribute__((noinline)) int name(int n) {                                                                        \
        volatile int value = n;                                                                                        \
        return next + value;                                                                                           \
    }
WORK(work1, 1)
WORK(work2, work1(n))
WORK(work3, work2(n) + work1(n))
WORK(work4, work3(n) + work2(n))

__attribute__((noinline)) int delicate(int n, const char *mode) {
    volatile int value = n;
    if (is_patched((const void *)delicate) && strcmp(mode, "calm")) {
        if (!strcmp(mode, "crash"))
            abort();
        if (!strcmp(mode, "output") || !strcmp(mode, "two"))
            puts("patched");
        if (!strcmp(mode, "status"))
            exit(9);
        if (!strcmp(mode, "hang"))
            for (;;)
                pause();
    }
    return value + work4(n);
}

__attribute__((noinline)) int touchy(int n, const char *mode) {
    volatile int value = n;
    if (is_patched((const void *)touchy) && !strcmp(mode, "two"))
        exit(3);
    return value + work3(n);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "calm";
    if (!strcmp(mode, "random"))
        printf("%d\n", (int)getpid());
    printf("%d %d\n", delicate(1, mode), touchy(2, mode));
    return 0;
}

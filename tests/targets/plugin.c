// A library to be loaded and unloaded: WHICH makes two of them differ in code.
#ifndef WHICH
#define WHICH 1
#endif
#define NOINLINE __attribute__((noinline))

static int constructed;

__attribute__((constructor)) static void begin(void) {
    constructed = 40;
}

NOINLINE static int inner(int n) {
    return n > 0 ? inner(n - 1) + WHICH : constructed;
}

#if WHICH == 2
// Only to move what follows.
NOINLINE int padding(int n) {
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += inner(i) * n;
    return sum;
}
#endif

int plugin_run(int n, int (*callback)(int)) {
    return callback(inner(n)) + inner(2);
}

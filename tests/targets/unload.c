// Loads, calls and unloads two libraries in turn, which tend to come to lie at the same address.
#include <dlfcn.h>
#include <stdio.h>

static long calls;

static int callback(int value) {
    calls++;
    return value * 2;
}

int main(int argc, char **argv) {
    long sum = 0;
    for (int i = 0; i < 100 && argc > 2; i++) {
        void *library = dlopen(argv[1 + i % 2], i % 3 ? RTLD_NOW : RTLD_LAZY);
        if (!library) {
            puts(dlerror());
            return 1;
        }
        int (*run)(int, int (*)(int));
        *(void **)&run = dlsym(library, "plugin_run");
        for (int k = 0; k < 10; k++)
            sum += run(k, callback);
        dlclose(library);
    }
    printf("sum %ld, callbacks %ld\n", sum, calls);
    return 0;
}

/* A library to be loaded and unloaded; its constructor and destructor call too. */
__attribute__((noinline)) int library_work(int n) {
    volatile int x = n;
    return x + 1;
}

__attribute__((constructor)) static void begin(void) {
    library_work(1);
}

__attribute__((destructor)) static void end(void) {
    library_work(2);
}

/* The host: loads and unloads two libraries and captures a call stack in each, on Linux and on Windows.
 *
 * It knows nothing of how stacks are resolved, and pays for raw return addresses and a time only. */
#include <stdint.h>
#include <stdio.h>

#include "capture.h"

#ifdef _WIN32
#include <windows.h>
#define SUFFIX ".dll"
static void *load(const char *path) {
    return LoadLibraryA(path);
}
static void *entry_of(void *library) {
    return (void *)GetProcAddress(library, "work");
}
static void unload(void *library) {
    FreeLibrary(library);
}
#else
#include <dlfcn.h>
#define SUFFIX ".so"
static void *load(const char *path) {
    return dlopen(path, RTLD_NOW);
}
static void *entry_of(void *library) {
    return dlsym(library, "work");
}
static void unload(void *library) {
    dlclose(library);
}
#endif

typedef void work_function(uint64_t tag);

/* Loads a library, works in it, and leaves it loaded. */
static void *use(const char *path, uint64_t tag) {
    void *library = load(path);
    if (!library) {
        printf("%s cannot be loaded\n", path);
        return NULL;
    }
    work_function *work = (work_function *)entry_of(library);
    printf("%s works at %p\n", path, (void *)work);
    work(tag);
    return library;
}

int main(void) {
    void *foo = use("./libfoo" SUFFIX, 1);
    unload(foo);
    void *bar = use("./libbar" SUFFIX, 2); /* where foo was */
    foo = use("./libfoo" SUFFIX, 3);       /* elsewhere now */
    unload(foo);
    unload(bar);
    capture(4);
    return 0;
}

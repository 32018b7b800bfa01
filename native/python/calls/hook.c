/* When the interpreter is ready: its audit events (PEP 578) tell, and a hook for them may be given before there is an
 * interpreter. */
#include <string.h>
#include <unistd.h>

#include "interpreter.h"

enum { RAW = 0 }; /* PYMEM_DOMAIN_RAW */

static void (*on_start)(void);
static bool is_started, is_command;

/* The interpreter keeps hooks in memory of its own, and frees it at the end with an allocator that may have changed in
 * between: the one that checks, of -X dev, aborts on blocks that are not its own (PySys_AddAuditHook and
 * _PySys_ClearAuditHooks in Python/sysmodule.c, 3.9 to 3.13). So that one is kept from this block. */
static struct allocator first, last;
static void *hook_memory;

static void *noting_malloc(void *data, size_t bytes) {
    return hook_memory = first.malloc(data, bytes);
}

static void sparing_free(void *data, void *memory) {
    if (memory != hook_memory)
        last.free(data, memory);
}

static void spare_hook(void) {
    cs_python.PyMem_GetAllocator(RAW, &last);
    if (last.free == first.free)
        return;
    struct allocator sparing = last;
    sparing.free = sparing_free;
    cs_python.PyMem_SetAllocator(RAW, &sparing);
}

/* The interpreter's own program says when it is done with its preparations; one that is part of another is traced from
 * its first event on. */
static int audit(const char *event, object *arguments, void *data) {
    (void)arguments, (void)data;
    if (!strcmp(event, "cpython._PySys_ClearAuditHooks"))
        spare_hook();
    if (is_started || !cs_python.Py_IsInitialized() || (is_command && strncmp(event, "cpython.run_", 12) != 0))
        return 0;
    is_started = true;
    on_start();
    return 0;
}

/* Whether the program is python itself, by the name of its file. */
static bool is_python(void) {
    char path[4096];
    ssize_t bytes = readlink("/proc/self/exe", path, sizeof path - 1);
    path[bytes > 0 ? bytes : 0] = 0;
    const char *name = strrchr(path, '/');
    return !strncmp(name ? name + 1 : path, "python", 6);
}

void cs_python_await(void (*start)(void)) {
    on_start = start;
    is_command = is_python();
    cs_python.PyMem_GetAllocator(RAW, &first);
    struct allocator noting = first;
    noting.malloc = noting_malloc;
    cs_python.PyMem_SetAllocator(RAW, &noting);
    cs_python.PySys_AddAuditHook(audit, NULL);
    cs_python.PyMem_SetAllocator(RAW, &first);
}

/* The extension module that records every bytecode instruction which the program around it executes.
 *
 * A script of callscope's loads it before the program begins, calls start() once, and removes what could be seen of it.
 */
#include "bytecode_frames.h"
#include "bytecode_routes.h"

/* start(version, events, codes, names, every_file, files, limit, values, infer, heights, frame, monitoring, threads):
 * `frame` is the running one, `monitoring` that module or None. */
static Object *start(Object *self, Object *arguments) {
    (void)self;
    const char *events, *codes;
    Object *frame, *monitoring, *threads;
    int every_file;
    if (!api.PyArg_ParseTuple(arguments, "issOiOliiOOOO", &choice.version, &events, &codes, &choice.names, &every_file,
                              &choice.files, &choice.limit, &choice.values, &choice.infer, &choice.heights, &frame,
                              &monitoring, &threads)) {
        return NULL;
    }
    choice.every_file = every_file != 0;
    api.Py_IncRef(choice.names);
    api.Py_IncRef(choice.files);
    api.Py_IncRef(choice.heights);
    if (!stream_open(events, codes)) {
        api.PyErr_SetString(api.runtime_error, "the recording's files cannot be mapped: is the disk full?");
        return NULL;
    }
    if (choice.infer && frames_open(frame)) {
        stream_token(TOKEN_INFER);
    } else if (choice.infer == INFER_ALWAYS) {
        api.PyErr_SetString(api.runtime_error, "the frames of this build of Python are not laid out as expected");
        return NULL;
    } else {
        choice.infer = 0;
    }
    if (!(choice.version >= 312 ? monitoring_open(monitoring) : settrace_open(frame, threads))) {
        return NULL;
    }
    api.Py_IncRef(api.none);
    return api.none;
}

#define NAME "_callscope_bytecode"
static Method methods[] = {{"start", start, METHOD_TUPLE, NULL}, {NULL, NULL, 0, NULL}};
static ModuleDefinition definition = {.head = {1, NULL}, .name = NAME, .size = -1, .methods = methods};

__attribute__((visibility("default"))) Object *PyInit__callscope_bytecode(void) {
    return api_open() ? api.PyModule_Create2(&definition, MODULE_API) : NULL;
}

/* CPython 2 */
__attribute__((visibility("default"))) void init_callscope_bytecode(void) {
    if (api_open()) {
        api.Py_InitModule4_64(NAME, methods, NULL, NULL, MODULE_API);
    }
}

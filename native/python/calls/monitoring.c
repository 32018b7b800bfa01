/* Calls from 3.12 on: callbacks of sys.monitoring (PEP 669), written in C. */
#include <string.h>

#include "record.h"

enum { FASTCALL_WITH_NAMES = 0x82 }; /* METH_FASTCALL | METH_KEYWORDS */

/* It serves both as a builtin's function and as a vectorcallfunc: the interpreter calls it without a detour then. */
typedef object *callback(object *self, object *const *arguments, size_t count, object *names);

static bool has_disabled; /* events, which stay so until all tools' begin anew */

/* An event of a code that is recorded; otherwise the interpreter need not ask again in this place. */
CS_RARE static object *tell_code(object *code, uint32_t type) {
    uint32_t function = cs_python_ask_code(code);
    cs_python_tell(function, type);
    has_disabled |= !function;
    return function ? cs_python.none : cs_python.disable;
}

static inline object *record_code(object *const *arguments, uint32_t type) {
    if (cs_python_is_stopped())
        return cs_python.disable;
    bool is_done = cs_python_record(cs_python_codes, arguments[0], type, false);
    return is_done ? cs_python.none : tell_code(arguments[0], type);
}

static object *entered(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    return record_code(arguments, 0);
}

static object *left(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    return record_code(arguments, CS_SCRIPT_EXIT);
}

/* PY_THROW and PY_UNWIND cannot be disabled. */
static object *thrown(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    if (!cs_python_is_stopped())
        record_code(arguments, 0);
    return cs_python.none;
}

static object *unwound(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    if (!cs_python_is_stopped())
        record_code(arguments, CS_SCRIPT_UNWOUND);
    return cs_python.none;
}

CS_RARE static object *tell_native(object *callable, uint32_t type) {
    cs_python_tell(cs_python_ask_native(callable), type);
    return cs_python.none;
}

/* An event of what sys.setprofile calls C functions: builtin functions and methods, and method descriptors with an
 * object. */
static inline object *record_native(object *const *arguments, uint32_t type) {
    object *callable = arguments[2];
    int word = BUILTIN_METHOD;
    if (!cs_python_is_builtin(callable)) {
        if (callable->type != cs_python.descriptor_type || arguments[3] == cs_python.missing)
            return cs_python.none;
        word = DESCRIPTOR_METHOD;
    }
    bool is_done = cs_python_record(cs_python_natives, ((void **)callable)[word], type, true);
    return is_done ? cs_python.none : tell_native(callable, type);
}

static object *called(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    return cs_python_is_stopped() ? cs_python.disable : record_native(arguments, 0);
}

static object *returned(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    return record_native(arguments, CS_SCRIPT_EXIT);
}

static object *raised(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    return record_native(arguments, CS_SCRIPT_UNWOUND);
}

static const struct event {
    const char *name;
    callback *callback;
} events[] = {
    {"PY_START", entered},  {"PY_RESUME", entered}, {"PY_THROW", thrown},   {"PY_RETURN", left}, {"PY_YIELD", left},
    {"PY_UNWIND", unwound}, {"CALL", called},       {"C_RETURN", returned}, {"C_RAISE", raised},
};

enum { VECTORCALL = 6 }; /* words from the start of a PyCFunctionObject */

enum { EVENTS = sizeof events / sizeof *events };

static struct method methods[EVENTS];

/* Register the callbacks with the first tool that is free among those that have no name in PEP 669. */
static long take_tool(object *monitoring) {
    static const int tools[] = {4, 3, 5, 2};
    for (unsigned i = 0; i < sizeof tools / sizeof *tools; i++) {
        object *done = cs_python.PyObject_CallMethod(monitoring, "use_tool_id", "is", tools[i], "callscope");
        if (done)
            return tools[i];
        cs_python.PyErr_Clear();
    }
    return -1;
}

/* A callable for a callback. PyCFunctionObject ends in its `vectorcall`: where that is what the interpreter says it is,
 * it becomes the callback itself. */
static object *callable_of(struct method *method, callback *callback) {
    *method = (struct method){"callscope", (void *)callback, FASTCALL_WITH_NAMES, NULL};
    object *function = cs_python.PyCFunction_NewEx(method, NULL, NULL);
    void **vectorcall = function ? (void **)function + VECTORCALL : NULL;
    if (function && cs_python.vectorcall && cs_python.vectorcall(function) == *vectorcall)
        *vectorcall = (void *)callback;
    return function;
}

static long tool = -1;

static bool install(object *monitoring, object *names) {
    long wanted = 0;
    tool = take_tool(monitoring);
    for (unsigned i = 0; i < EVENTS && tool >= 0; i++) {
        object *function = callable_of(&methods[i], events[i].callback);
        object *number = cs_python.PyObject_GetAttrString(names, events[i].name);
        if (!function || !number)
            return false;
        wanted |= cs_python.PyLong_AsLong(number);
        object *before =
            cs_python.PyObject_CallMethod(monitoring, "register_callback", "iOO", (int)tool, number, function);
        cs_python.Py_DecRef(function);
        if (!before)
            return false;
    }
    cs_python.missing = cs_python.PyObject_GetAttrString(monitoring, "MISSING");
    cs_python.disable = cs_python.PyObject_GetAttrString(monitoring, "DISABLE");
    return tool >= 0 && cs_python.missing && cs_python.disable &&
           (!has_disabled || cs_python.PyObject_CallMethod(monitoring, "restart_events", NULL)) &&
           cs_python.PyObject_CallMethod(monitoring, "set_events", "il", (int)tool, wanted);
}

bool cs_python_monitor(void) {
    object *monitoring = cs_python.PySys_GetObject("monitoring");
    object *names = monitoring ? cs_python.PyObject_GetAttrString(monitoring, "events") : NULL;
    return names && install(monitoring, names);
}

void cs_python_stop_monitor(void) {
    object *monitoring = cs_python.PySys_GetObject("monitoring");
    object *names = monitoring ? cs_python.PyObject_GetAttrString(monitoring, "events") : NULL;
    if (!names || tool < 0)
        return;
    cs_python.PyObject_CallMethod(monitoring, "set_events", "ii", (int)tool, 0);
    for (unsigned i = 0; i < EVENTS; i++) {
        object *number = cs_python.PyObject_GetAttrString(names, events[i].name);
        object *before = number ? cs_python.PyObject_CallMethod(monitoring, "register_callback", "iOO", (int)tool,
                                                                number, cs_python.none)
                                : NULL;
        if (before)
            cs_python.Py_DecRef(before);
        cs_python.PyErr_Clear();
    }
    cs_python.Py_DecRef(names);
    cs_python.PyObject_CallMethod(monitoring, "free_tool_id", "i", (int)tool);
    tool = -1;
}

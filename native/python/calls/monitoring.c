/* Calls from 3.12 on: callbacks of sys.monitoring (PEP 669), written in C. */
#include <string.h>

#include "interpreter.h"

enum { FASTCALL_WITH_NAMES = 0x82 }; /* METH_FASTCALL | METH_KEYWORDS */

/* It serves both as a builtin's function and as a vectorcallfunc: the interpreter calls it without a detour then. */
typedef object *callback(object *self, object *const *arguments, size_t count, object *names);

/* For code that is not recorded: the interpreter need not ask again in this place. */
static object *answer(uint32_t function) {
    return function ? cs_python.none : cs_python.disable;
}

static object *entered(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    uint32_t function = cs_python_of_code(arguments[0]);
    if (function)
        cs_agent.enter(function);
    return answer(function);
}

/* As `entered`, for an event that cannot be disabled. */
static object *thrown(object *self, object *const *arguments, size_t count, object *names) {
    entered(self, arguments, count, names);
    return cs_python.none;
}

static object *left(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    uint32_t function = cs_python_of_code(arguments[0]);
    if (function)
        cs_agent.leave(function, false);
    return answer(function);
}

static object *unwound(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    uint32_t function = cs_python_of_code(arguments[0]);
    if (function)
        cs_agent.leave(function, true);
    return cs_python.none;
}

/* What sys.setprofile calls C functions: builtin functions and methods, and method descriptors with an object. */
static bool is_native(object *const *arguments) {
    const object *callable = arguments[2], *type = callable->type;
    return type == cs_python.builtin_type || type == cs_python.builtin_method_type ||
           (type == cs_python.descriptor_type && arguments[3] != cs_python.missing);
}

static object *called(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    uint32_t function = is_native(arguments) ? cs_python_of_native(arguments[2]) : 0;
    if (function)
        cs_agent.enter(function);
    return cs_python.none;
}

static object *returned(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    uint32_t function = is_native(arguments) ? cs_python_of_native(arguments[2]) : 0;
    if (function)
        cs_agent.leave(function, false);
    return cs_python.none;
}

static object *raised(object *self, object *const *arguments, size_t count, object *names) {
    (void)self, (void)count, (void)names;
    uint32_t function = is_native(arguments) ? cs_python_of_native(arguments[2]) : 0;
    if (function)
        cs_agent.leave(function, true);
    return cs_python.none;
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
           cs_python.PyObject_CallMethod(monitoring, "restart_events", NULL) &&
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

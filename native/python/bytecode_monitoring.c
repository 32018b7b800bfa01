/* CPython 3.12 on: sys.monitoring, with callbacks in C. */
#include "bytecode_routes.h"

enum { FIRST_TOOL = 3, LAST_TOOL = 4 }; /* the numbers that no kind of tool claims (Doc/library/sys.monitoring.rst) */

static Object *monitoring, *disable;
static long tool, local_events;

static inline Object *none(void) {
    return api.none; /* immortal since 3.12 */
}

static inline uint32_t position(Object *offset) {
    return (uint32_t)(api.PyLong_AsLong(offset) >> 1);
}

static Object *on_instruction(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    if (choice.values) {
        values_record(api.PyEval_GetFrame(), arguments[0], position(arguments[1]));
    }
    stream_instruction(arguments[0], position(arguments[1]));
    return none();
}

static Object *on_resume(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    const Code *code = code_of(arguments[0]);
    if (code->number != 0) {
        stream_start(code, position(arguments[1]) + 1);
    }
    return none();
}

/* The frame goes on where an exception leads: what it was suspended at is not executed. */
static Object *on_throw(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    const Code *code = code_of(arguments[0]);
    if (code->number != 0) {
        stream_start(code, 0);
    }
    return none();
}

static Object *on_start(Object *self, Object *const *arguments, intptr_t count) {
    const Code *code = code_of(arguments[0]);
    if (code->number == 0) {
        if (code->code == NULL) {
            return none();
        }
        api.Py_IncRef(disable);
        return disable;
    }
    if (code->local_events == 0) {
        code_of(arguments[0])->local_events = 1;
        Object *done = api.PyObject_CallMethod(monitoring, "set_local_events", "lOl", tool, arguments[0], local_events);
        if (done == NULL) {
            api.PyErr_Clear();
        } else {
            api.Py_DecRef(done);
        }
    }
    return on_resume(self, arguments, count);
}

static Object *on_end(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    const Code *code = code_of(arguments[0]);
    if (code->number != 0) {
        stream_end(code);
    }
    return none();
}

static struct {
    const char *event;
    FastFunction callback;
    bool local;
    Method method;
} callbacks[] = {
    {"INSTRUCTION", on_instruction, true, {0}}, {"PY_START", on_start, false, {0}}, {"PY_RESUME", on_resume, true, {0}},
    {"PY_RETURN", on_end, true, {0}},           {"PY_YIELD", on_end, true, {0}},    {"PY_THROW", on_throw, false, {0}},
    {"PY_UNWIND", on_end, false, {0}},
};

static bool done(Object *result) {
    if (result != NULL) {
        api.Py_DecRef(result);
    }
    return result != NULL;
}

bool monitoring_open(Object *module) {
    monitoring = module;
    api.Py_IncRef(module);
    disable = api.PyObject_GetAttrString(module, "DISABLE");
    Object *events = api.PyObject_GetAttrString(module, "events");
    if (disable == NULL || events == NULL) {
        return false;
    }
    bool claimed = false;
    for (tool = LAST_TOOL; !claimed && tool >= FIRST_TOOL; tool -= !claimed) {
        claimed = done(api.PyObject_CallMethod(module, "use_tool_id", "ls", tool, "callscope"));
        if (!claimed) {
            api.PyErr_Clear();
        }
    }
    if (!claimed) {
        api.PyErr_SetString(api.runtime_error, "other tools use all of sys.monitoring");
        return false;
    }
    long global_events = 0;
    for (size_t i = 0; i < sizeof callbacks / sizeof callbacks[0]; i++) {
        long event = api_integer(events, callbacks[i].event, 0);
        callbacks[i].method =
            (Method){callbacks[i].event, (CFunction)(void (*)(void))callbacks[i].callback, METHOD_FAST, NULL};
        Object *callback = api.PyCFunction_NewEx(&callbacks[i].method, NULL, NULL);
        if (callback == NULL ||
            !done(api.PyObject_CallMethod(module, "register_callback", "llO", tool, event, callback))) {
            return false;
        }
        *(callbacks[i].local ? &local_events : &global_events) |= event;
    }
    return done(api.PyObject_CallMethod(module, "set_events", "ll", tool, global_events));
}

/* CPython 3.12 on: sys.monitoring, with callbacks in C. */
#include "bytecode_routes.h"

enum { FIRST_TOOL = 3, LAST_TOOL = 4 }; /* the numbers that no kind of tool claims (Doc/library/sys.monitoring.rst) */

enum { VECTORCALL = 6 }; /* words from the start of a PyCFunctionObject: Include/cpython/methodobject.h */

static Object *monitoring, *disable;
static long tool, local_events;

static inline Object *none(void) {
    return api.none; /* immortal since 3.12 */
}

/* PyLongObject: Include/cpython/longintrepr.h. The number of its digits stands above three bits. */
typedef struct {
    Object head;
    uintptr_t tag;
    uint32_t digit;
} Integer;
enum { DIGITS_SHIFT = 3 };

static bool integers_hold; /* checked: they are laid out so */

static inline uint32_t position(Object *offset) {
    const Integer *integer = (const Integer *)offset;
    if (__builtin_expect(integers_hold && integer->tag >> DIGITS_SHIFT == 1, true)) {
        return integer->digit >> 1;
    }
    return (uint32_t)(api.PyLong_AsLong(offset) >> 1);
}

static bool check_integer(Object *owner, const char *attribute) {
    Object *value = api.PyObject_GetAttrString(owner, attribute);
    const Integer *integer = (const Integer *)value;
    bool right = value != NULL && integer->tag == 1 << DIGITS_SHIFT && (long)integer->digit == api.PyLong_AsLong(value);
    if (value != NULL) {
        api.Py_DecRef(value);
    }
    return right;
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

/* A builtin for a callback. It is called without the interpreter's detour where it ends in its `vectorcall`, whose
 * first parameters are those of a callback. */
static Object *make_callback(Method *method) {
    Object *callback = api.PyCFunction_NewEx(method, NULL, NULL);
    void **last = callback == NULL ? NULL : (void **)callback + VECTORCALL;
    if (callback != NULL && api.PyVectorcall_Function != NULL && api.PyVectorcall_Function(callback) == *last) {
        *last = (void *)method->function;
    }
    return callback;
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
    integers_hold = check_integer(events, "PY_START") && check_integer(events, "INSTRUCTION");
    long global_events = 0;
    for (size_t i = 0; i < sizeof callbacks / sizeof callbacks[0]; i++) {
        long event = api_integer(events, callbacks[i].event, 0);
        callbacks[i].method =
            (Method){callbacks[i].event, (CFunction)(void (*)(void))callbacks[i].callback, METHOD_FAST, NULL};
        Object *callback = make_callback(&callbacks[i].method);
        if (callback == NULL ||
            !done(api.PyObject_CallMethod(module, "register_callback", "llO", tool, event, callback))) {
            return false;
        }
        *(callbacks[i].local ? &local_events : &global_events) |= event;
    }
    return done(api.PyObject_CallMethod(module, "set_events", "ll", tool, global_events));
}

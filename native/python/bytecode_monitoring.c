/* CPython 3.12 on: sys.monitoring, with callbacks in C. */
#include "bytecode_frames.h"
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

uint32_t monitoring_position(Object *offset) {
    const Integer *integer = (const Integer *)offset;
    if (__builtin_expect(integers_hold && integer->tag >> DIGITS_SHIFT == 1, true)) {
        return integer->digit >> 1;
    }
    return (uint32_t)(api.PyLong_AsLong(offset) >> 1);
}

Object *monitoring_disable(void) {
    api.Py_IncRef(disable);
    return disable;
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
        values_record(api.PyEval_GetFrame(), arguments[0], monitoring_position(arguments[1]));
    }
    stream_instruction(arguments[0], monitoring_position(arguments[1]));
    return none();
}

static Object *on_resume(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    const Code *code = code_of(arguments[0]);
    if (code->number != 0) {
        (choice.infer ? infer_begin : stream_start)(code, monitoring_position(arguments[1]) + 1);
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
        return monitoring_disable();
    }
    if (code->local_events == 0) {
        code_of(arguments[0])->local_events = 1;
        if (choice.infer) {
            frames_split_pairs(arguments[0]);
        }
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

typedef struct {
    const char *event;
    FastFunction callback;
    bool local;
    Method method;
} Callback;

static Callback each_instruction[] = {
    {"INSTRUCTION", on_instruction, true, {0}}, {"PY_START", on_start, false, {0}}, {"PY_RESUME", on_resume, true, {0}},
    {"PY_RETURN", on_end, true, {0}},           {"PY_YIELD", on_end, true, {0}},    {"PY_THROW", on_throw, false, {0}},
    {"PY_UNWIND", on_end, false, {0}},          {NULL, NULL, false, {0}},
};

static Callback inferred[] = {
    {"BRANCH", infer_branch, true, {0}},
    {"JUMP", infer_branch, true, {0}},
    {"CALL", infer_call, true, {0}},
    {"PY_START", on_start, false, {0}},
    {"PY_RESUME", on_resume, true, {0}},
    {"PY_RETURN", infer_return, true, {0}},
    {"PY_YIELD", infer_yield, true, {0}},
    {"PY_THROW", infer_throw, false, {0}},
    {"PY_UNWIND", infer_unwind, false, {0}},
    {"RAISE", infer_raise, false, {0}},
    {"RERAISE", infer_reraise, false, {0}},
    {"EXCEPTION_HANDLED", infer_handled, false, {0}},
    {NULL, NULL, false, {0}},
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
    for (Callback *one = choice.infer ? inferred : each_instruction; one->event != NULL; one++) {
        long event = api_integer(events, one->event, 0);
        one->method = (Method){one->event, (CFunction)(void (*)(void))one->callback, METHOD_FAST, NULL};
        Object *callback = make_callback(&one->method);
        if (callback == NULL ||
            !done(api.PyObject_CallMethod(module, "register_callback", "llO", tool, event, callback))) {
            return false;
        }
        *(one->local ? &local_events : &global_events) |= event;
    }
    return done(api.PyObject_CallMethod(module, "set_events", "ll", tool, global_events));
}

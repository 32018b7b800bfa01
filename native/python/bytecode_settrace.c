/* CPython 2.7 and 3.6 to 3.11: a trace function in C. */
#include "bytecode_routes.h"
#include <string.h>

/* What trace functions are told: Include/pystate.h. */
enum { TRACE_CALL = 0, TRACE_LINE = 2, TRACE_RETURN = 3, TRACE_OPCODE = 7 };

/* Include/frameobject.h, cpython/frameobject.h, internal/pycore_frame.h and code.h of each version; checked at the
 * start. */
static const Layout layouts[] = {
    {207, 207, .code = 32, .lasti = 120, .lineno = 124, .trace = 80, .lnotab = 104},
    {306, 306, .code = 32, .lasti = 120, .lnotab = 112},
    {307, 309, .code = 32, .lasti = 104, .trace_lines = 88, .trace_opcodes = 89},
    {310, 310, .code = 32, .lasti = 96, .trace_lines = 84, .trace_opcodes = 85},
    {311, 311, .code = 32, .trace_lines = 44, .trace_opcodes = 45},
};
enum { INNER_FRAME = 24 }; /* 3.11: where a frame object has the frame proper, which has the code object */

static const Layout *layout;
static Object *tracer; /* what sys.gettrace() gives: installs the trace function again when the program does that */

static Object
    *ignorer; /* CPython 2.7: the local trace function of frames, for one of the program's own: does nothing */

static inline Object *frame_code(Object *frame) {
    char *base = (char *)frame;
    if (layout->lasti == 0) {
        base = *(char **)(base + INNER_FRAME);
    }
    return *(Object **)(base + layout->code);
}

/* Position of the last instruction in code units, -1 before the first. */
static inline int32_t frame_position(Object *frame) {
    if (layout->lasti == 0) {
        return api.PyFrame_GetLasti(frame) >> 1;
    }
    int32_t raw = *(int32_t *)((char *)frame + layout->lasti);
    return layout->oldest == 207 || layout->oldest == 310 ? raw : raw >> 1;
}

static Code *entered(Object *frame) {
    Code *code = code_of(frame_code(frame));
    if (layout->trace_opcodes != 0 && code->code != NULL) {
        ((char *)frame)[layout->trace_lines] = 0;
        ((char *)frame)[layout->trace_opcodes] = code->number != 0;
    }
    if (layout->lnotab != 0 && code->number != 0) {
        lines_replace(code, layout);
        Object **trace = (Object **)((char *)frame + layout->trace);
        if (layout->trace != 0 && *trace == NULL) { /* so that the line is asked of the frame, not of the code */
            api.Py_IncRef(ignorer);
            *trace = ignorer;
        }
    }
    return code;
}

static void traced_line(Object *frame) {
    Object *object = frame_code(frame);
    uint32_t at = (uint32_t)frame_position(frame);
    if (layout->lineno != 0) {
        const Code *code = code_of(object);
        if (at < code->line_count) {
            *(int32_t *)((char *)frame + layout->lineno) = code->lines[at];
        }
    }
    if (choice.values) {
        values_record(frame, object, at);
    }
    stream_instruction(object, at);
}

static int trace(Object *self, Object *frame, int what, Object *argument) {
    (void)self, (void)argument;
    if (what == TRACE_OPCODE) {
        if (choice.values) {
            values_record(frame, frame_code(frame), (uint32_t)frame_position(frame));
        }
        stream_instruction(frame_code(frame), (uint32_t)frame_position(frame));
    } else if (what == TRACE_LINE) {
        if (layout->lnotab != 0) {
            traced_line(frame);
        }
    } else if (what == TRACE_CALL) {
        const Code *code = entered(frame);
        if (code->number != 0) {
            stream_start(code, (uint32_t)(frame_position(frame) + 1));
        }
    } else if (what == TRACE_RETURN) {
        const Code *code = code_of(frame_code(frame));
        if (code->number != 0) {
            stream_end(code);
        }
    }
    return 0;
}

/* The program has installed what sys.gettrace() gave it, which is called as any trace function is. */
static Object *reinstall(Object *self, Object *arguments) {
    (void)self;
    api.PyEval_SetTrace(trace, tracer);
    const char *event = api.PyTuple_Size(arguments) == 3 ? api_text(api.PyTuple_GetItem(arguments, 1)) : NULL;
    if (event != NULL && strcmp(event, "call") == 0) {
        trace(NULL, api.PyTuple_GetItem(arguments, 0), TRACE_CALL, NULL);
    }
    api.Py_IncRef(tracer);
    return tracer;
}

static Object *ignore(Object *self, Object *arguments) {
    (void)self, (void)arguments;
    api.Py_IncRef(ignorer);
    return ignorer;
}

/* A thread's function with its arguments, in `call`. */
static Object *run_thread(Object *call, Object *arguments) {
    (void)arguments;
    api.PyEval_SetTrace(trace, tracer);
    Object *keywords = api.PyTuple_Size(call) > 2 ? api.PyTuple_GetItem(call, 2) : NULL;
    return api.PyObject_Call(api.PyTuple_GetItem(call, 0), api.PyTuple_GetItem(call, 1), keywords);
}

static Method reinstall_method = {"trace", reinstall, METHOD_TUPLE, NULL};
static Method ignore_method = {"trace", ignore, METHOD_TUPLE, NULL};
static Method thread_method = {"run", run_thread, METHOD_TUPLE, NULL};

/* start_new_thread(function, arguments[, keywords]): `original`, of something that installs the trace function first.
 */
static Object *start_thread(Object *original, Object *arguments) {
    intptr_t count = api.PyTuple_Size(arguments);
    if (count < 2 || count > 3 || api.PyTuple_Size(api.PyTuple_GetItem(arguments, 1)) < 0) {
        api.PyErr_Clear();
        return api.PyObject_Call(original, arguments, NULL); /* says what is wrong */
    }
    Object *run = api.PyCFunction_NewEx(&thread_method, arguments, NULL);
    Object *result = run == NULL ? NULL : api.PyObject_CallFunction(original, "O()", run);
    if (run != NULL) {
        api.Py_DecRef(run);
    }
    return result;
}

static Method start_methods[] = {
    {"start_new_thread", start_thread, METHOD_TUPLE, NULL},
    {"start_new", start_thread, METHOD_TUPLE, NULL},
};

static bool wrap_threads(Object *module) {
    Object *name = api.PyObject_GetAttrString(module, "__name__");
    for (size_t i = 0; name != NULL && i < sizeof start_methods / sizeof start_methods[0]; i++) {
        Object *original = api.PyObject_GetAttrString(module, start_methods[i].name);
        if (original == NULL) {
            api.PyErr_Clear();
            continue;
        }
        Object *wrapper = api.PyCFunction_NewEx(&start_methods[i], original, name);
        if (wrapper == NULL || api.PyObject_SetAttrString(module, start_methods[i].name, wrapper) < 0) {
            return false;
        }
    }
    return name != NULL;
}

/* Whether the layout is right: what is read from a frame is what its attributes say. */
static bool layout_holds(Object *frame) {
    Object *code = api.PyObject_GetAttrString(frame, "f_code");
    int scale = choice.version < 300 ? 1 : 2;
    bool right =
        code != NULL && frame_code(frame) == code && frame_position(frame) * scale == api_integer(frame, "f_lasti", -1);
    if (right && layout->trace_opcodes != 0) {
        char *lines = (char *)frame + layout->trace_lines, *opcodes = (char *)frame + layout->trace_opcodes;
        right = *lines == 1 && *opcodes == 0;
        *opcodes = right ? 1 : *opcodes;
        right = right && api_integer(frame, "f_trace_opcodes", 0) == 1;
        *opcodes = right ? 0 : *opcodes;
    }
    if (right && layout->lnotab != 0) {
        Object *lines = api.PyObject_GetAttrString(code, "co_lnotab");
        right = *(Object **)((char *)code + layout->lnotab) == lines;
    }
    return right;
}

bool settrace_open(Object *frame, Object *threads) {
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (layouts[i].oldest <= choice.version && choice.version <= layouts[i].newest) {
            layout = &layouts[i];
        }
    }
    if (layout == NULL || !layout_holds(frame)) {
        api.PyErr_SetString(api.runtime_error, "the frames of this build of Python are not laid out as expected");
        return false;
    }
    tracer = api.PyCFunction_NewEx(&reinstall_method, NULL, NULL);
    ignorer = api.PyCFunction_NewEx(&ignore_method, NULL, NULL);
    if (tracer == NULL || ignorer == NULL || !wrap_threads(threads)) {
        return false;
    }
    api.PyEval_SetTrace(trace, tracer);
    return true;
}

/* Calls up to 3.11: the interpreter's profile function (docs.python.org, C API, "Profiling and Tracing"). */
#include <stdlib.h>

#include "interpreter.h"

enum { CALL = 0, RETURN = 3, C_CALL = 4, C_EXCEPTION = 5, C_RETURN = 6 }; /* PyTrace_* */

static void *start_thread; /* the code of _thread.start_new_thread */

static int profile(object *self, frame *at, int what, object *argument);

/* The caller made a thread, which has not begun yet: its state is the newest. */
static void follow_thread(void) {
    thread_state *own = cs_python.PyThreadState_Get();
    thread_state *newest = cs_python.PyInterpreterState_ThreadHead(cs_python.PyThreadState_GetInterpreter(own));
    if (newest && newest != own)
        cs_python._PyEval_SetProfile(newest, profile, NULL);
}

/* Where a frame has its code: PyFrameObject.f_code, from 3.11 on f_frame->f_code. Checked against PyFrame_GetCode. */
enum { FRAME_CODE = 4, FRAME_INNER = 3 };

static object *code_at(frame *at) {
    void **frame = (void **)at;
    return cs_python.minor < 11 ? frame[FRAME_CODE] : ((void **)frame[FRAME_INNER])[FRAME_CODE];
}

static object *code_of(frame *at) {
    static int is_there = -1; /* not known yet */
    if (is_there > 0)
        return code_at(at);
    object *code = cs_python.PyFrame_GetCode(at);
    if (is_there < 0)
        is_there = code_at(at) == code;
    code->references--; /* the frame has another */
    return code;
}

static void frame_event(frame *at, int what, const object *value) {
    uint32_t function = cs_python_of_code(code_of(at));
    if (!function)
        return;
    if (what == CALL)
        cs_agent.enter(function);
    else
        cs_agent.leave(function, value == NULL);
}

static void native_event(int what, object *callable) {
    uint32_t function = cs_python_of_native(callable);
    if (function) {
        if (what == C_CALL)
            cs_agent.enter(function);
        else
            cs_agent.leave(function, what == C_EXCEPTION);
    }
    if (what == C_RETURN && cs_python.PyCFunction_GetFunction(callable) == start_thread)
        follow_thread();
}

static int profile(object *self, frame *at, int what, object *argument) {
    (void)self;
    if (what == CALL || what == RETURN)
        frame_event(at, what, argument);
    else if (what >= C_CALL && what <= C_RETURN &&
             (argument->type == cs_python.builtin_type || argument->type == cs_python.builtin_method_type))
        native_event(what, argument);
    return 0;
}

static void find_start_thread(void) {
    object *module = cs_python.PyImport_ImportModule("_thread");
    object *function = module ? cs_python.PyObject_GetAttrString(module, "start_new_thread") : NULL;
    if (function && function->type == cs_python.builtin_type)
        start_thread = cs_python.PyCFunction_GetFunction(function);
    cs_python.PyErr_Clear();
    if (function)
        cs_python.Py_DecRef(function);
    if (module)
        cs_python.Py_DecRef(module);
}

static void set_everywhere(profile_function function) {
    thread_state *own = cs_python.PyThreadState_Get();
    thread_state *at = cs_python.PyInterpreterState_ThreadHead(cs_python.PyThreadState_GetInterpreter(own));
    for (; at; at = cs_python.PyThreadState_Next(at))
        cs_python._PyEval_SetProfile(at, function, NULL);
}

bool cs_python_profile(void) {
    find_start_thread();
    set_everywhere(profile);
    return true;
}

void cs_python_stop_profile(void) {
    set_everywhere(NULL);
}

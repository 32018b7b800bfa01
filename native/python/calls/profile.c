/* Calls up to 3.11: the interpreter's profile function (docs.python.org, C API, "Profiling and Tracing"). */
#include <stdlib.h>

#include "record.h"

enum { CALL = 0, RETURN = 3, C_CALL = 4, C_EXCEPTION = 5, C_RETURN = 6 }; /* PyTrace_* */

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

static enum { UNKNOWN, IN_FRAME, IN_INNER, NOWHERE } code_place;

static object *ask_frame(frame *at) {
    void **frame = (void **)at;
    object *code = cs_python.PyFrame_GetCode(at);
    if (code_place == UNKNOWN && cs_python.minor < 11)
        code_place = frame[FRAME_CODE] == code ? IN_FRAME : NOWHERE;
    else if (code_place == UNKNOWN)
        code_place = ((void **)frame[FRAME_INNER])[FRAME_CODE] == code ? IN_INNER : NOWHERE;
    code->references--; /* the frame has another */
    return code;
}

CS_RARE static int tell_frame(frame *at, uint32_t type) {
    cs_python_tell(cs_python_ask_code(ask_frame(at)), type);
    return 0;
}

static inline int record_frame(frame *at, uint32_t type) {
    void **frame = (void **)at;
    if (code_place != IN_FRAME && code_place != IN_INNER)
        return tell_frame(at, type);
    object *code = code_place == IN_FRAME ? frame[FRAME_CODE] : ((void **)frame[FRAME_INNER])[FRAME_CODE];
    return cs_python_record(cs_python_codes, code, type, true) ? 0 : tell_frame(at, type);
}

CS_RARE static int tell_native(object *callable, uint32_t type) {
    cs_python_tell(cs_python_ask_native(callable), type);
    if (type == CS_SCRIPT_EXIT && ((struct method **)callable)[BUILTIN_METHOD]->code == cs_python.start_thread)
        follow_thread();
    return 0;
}

static inline int record_native(object *callable, uint32_t type) {
    if (!cs_python_is_builtin(callable))
        return 0;
    bool is_done = cs_python_record(cs_python_natives, ((void **)callable)[BUILTIN_METHOD], type, true);
    return is_done ? 0 : tell_native(callable, type);
}

static int profile(object *self, frame *at, int what, object *argument) {
    (void)self;
    if (cs_python_is_stopped()) {
        cs_python._PyEval_SetProfile(cs_python.PyThreadState_Get(), NULL, NULL);
        return 0;
    }
    if (what == CALL || what == RETURN)
        return record_frame(at, what == CALL ? 0 : argument ? CS_SCRIPT_EXIT : CS_SCRIPT_UNWOUND);
    if (what < C_CALL || what > C_RETURN)
        return 0;
    return record_native(argument, what == C_CALL ? 0 : what == C_RETURN ? CS_SCRIPT_EXIT : CS_SCRIPT_UNWOUND);
}

static void find_start_thread(void) {
    object *module = cs_python.PyImport_ImportModule("_thread");
    object *function = module ? cs_python.PyObject_GetAttrString(module, "start_new_thread") : NULL;
    if (function && function->type == cs_python.builtin_type)
        cs_python.start_thread = cs_python.PyCFunction_GetFunction(function);
    cs_python.PyErr_Clear();
    if (function)
        cs_python.Py_DecRef(function);
    if (module)
        cs_python.Py_DecRef(module);
}

enum { STATE_WORDS = 16 }; /* of a thread state, among which its profile function is: the sixth to ninth so far */

static int function_word; /* which; 0: not known */

static int probe(object *self, frame *at, int what, object *argument) {
    (void)self, (void)at, (void)what, (void)argument;
    return 0;
}

/* Find it in our own thread's state, unless the program has a function there. */
static void find_function_word(void) {
    object *module = cs_python.PyImport_ImportModule("sys");
    object *before = module ? cs_python.PyObject_CallMethod(module, "getprofile", NULL) : NULL;
    thread_state *own = cs_python.PyThreadState_Get();
    if (before == cs_python.none && !function_word) {
        cs_python._PyEval_SetProfile(own, probe, NULL);
        for (int i = 1; i < STATE_WORDS; i++)
            if (((void **)own)[i] == (void *)probe)
                function_word = i;
        cs_python._PyEval_SetProfile(own, NULL, NULL);
    }
    cs_python.PyErr_Clear();
    if (before)
        cs_python.Py_DecRef(before);
    if (module)
        cs_python.Py_DecRef(module);
}

/* Where a thread has the function `from`, let it have `to`: those of the program's own stay. */
static void exchange(profile_function from, profile_function to) {
    thread_state *own = cs_python.PyThreadState_Get();
    thread_state *at = cs_python.PyInterpreterState_ThreadHead(cs_python.PyThreadState_GetInterpreter(own));
    for (; at; at = cs_python.PyThreadState_Next(at))
        if (!function_word || ((void **)at)[function_word] == (void *)from)
            cs_python._PyEval_SetProfile(at, to, NULL);
}

bool cs_python_profile(void) {
    find_start_thread();
    find_function_word();
    exchange(NULL, profile);
    return true;
}

void cs_python_stop_profile(void) {
    exchange(profile, NULL);
}

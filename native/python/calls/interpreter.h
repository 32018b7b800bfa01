/* A CPython interpreter, 3.9 to 3.14, as far as the recorder needs it: its functions are looked up by name when the
 * library is loaded, so that one library serves every version, and no header of any is needed.
 *
 * What is used of objects' memory has been the same since 3.6 (without Py_TRACE_REFS and with the global lock), and is
 * checked before use: ob_refcnt, ob_type; PyCFunctionObject.m_ml; PyMethodDescrObject.d_method; PyMethodDef.
 * Source: CPython's Include/object.h, methodobject.h, descrobject.h, cpython/code.h; docs.python.org, "C API". */
#ifndef CALLSCOPE_PYTHON_INTERPRETER_H
#define CALLSCOPE_PYTHON_INTERPRETER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "callscope/script.h"

typedef struct object {
    ssize_t references;
    struct object *type;
} object;

/* PyMethodDef; it ends with the documentation. */
struct method {
    const char *name;
    void *code;
    int flags;
    const char *doc;
};

/* PyMemAllocatorEx. */
struct allocator {
    void *data;
    void *(*malloc)(void *data, size_t bytes);
    void *(*calloc)(void *data, size_t count, size_t bytes);
    void *(*realloc)(void *data, void *memory, size_t bytes);
    void (*free)(void *data, void *memory);
};

typedef struct thread_state thread_state;
typedef struct interpreter_state interpreter_state;
typedef struct frame frame;
typedef int (*profile_function)(object *self, frame *at, int what, object *argument);
typedef int (*audit_hook)(const char *event, object *arguments, void *data);

/* X(what it returns, name, parameters): looked up all at once; those of `OPTIONAL` may be missing. */
#define CS_PYTHON_FUNCTIONS(X)                                                                                         \
    X(int, Py_IsInitialized, (void))                                                                                   \
    X(void, Py_IncRef, (object *))                                                                                     \
    X(void, Py_DecRef, (object *))                                                                                     \
    X(const char *, Py_GetVersion, (void))                                                                             \
    X(int, PySys_AddAuditHook, (audit_hook, void *))                                                                   \
    X(void, PyMem_GetAllocator, (int domain, struct allocator *))                                                      \
    X(void, PyMem_SetAllocator, (int domain, struct allocator *))                                                      \
    X(object *, PySys_GetObject, (const char *))                                                                       \
    X(object *, PyObject_GetAttrString, (object *, const char *))                                                      \
    X(object *, PyMapping_GetItemString, (object *, const char *))                                                     \
    X(object *, PyTuple_GetItem, (object *, ssize_t))                                                                  \
    X(ssize_t, PyTuple_Size, (object *))                                                                               \
    X(object *, PyEval_GetGlobals, (void))                                                                             \
    X(object *, PyObject_CallMethod, (object *, const char *, const char *, ...))                                      \
    X(object *, PyImport_ImportModule, (const char *))                                                                 \
    X(object *, PyCFunction_NewEx, (struct method *, object *, object *))                                              \
    X(void *, PyCFunction_GetFunction, (object *))                                                                     \
    X(long, PyLong_AsLong, (object *))                                                                                 \
    X(const char *, PyUnicode_AsUTF8AndSize, (object *, ssize_t *))                                                    \
    X(void, PyErr_Clear, (void))                                                                                       \
    X(void, PyErr_Fetch, (object **, object **, object **))                                                            \
    X(void, PyErr_Restore, (object *, object *, object *))                                                             \
    X(object *, PyFrame_GetCode, (frame *))                                                                            \
    X(thread_state *, PyThreadState_Get, (void))                                                                       \
    X(thread_state *, PyThreadState_Next, (thread_state *))                                                            \
    X(interpreter_state *, PyThreadState_GetInterpreter, (thread_state *))                                             \
    X(thread_state *, PyInterpreterState_ThreadHead, (interpreter_state *))                                            \
    X(int, _PyEval_SetProfile, (thread_state *, profile_function, object *))

#define CS_PYTHON_FIELD(result, name, parameters) result(*name) parameters;

struct cs_python {
    CS_PYTHON_FUNCTIONS(CS_PYTHON_FIELD)
    /* _PyCode_* or, from 3.12 on, PyUnstable_Code_* */
    ssize_t (*request_extra)(void (*free_extra)(void *));
    int (*get_extra)(object *code, ssize_t index, void **extra);
    int (*set_extra)(object *code, ssize_t index, void *extra);
    void *(*vectorcall)(object *callable); /* may be missing */
    object *none, *builtin_type, *builtin_method_type, *descriptor_type, *class_descriptor_type, *module_type;
    object *type_type, *missing, *disable;
    void *start_thread; /* the code of _thread.start_new_thread, where threads are to be followed */
    int minor;          /* of version 3 */
    ssize_t extra_index;
    bool is_checked;
};

#define CS_HIDDEN __attribute__((visibility("hidden")))

extern struct cs_python cs_python CS_HIDDEN;

/* The agent's side of callscope/script.h. */
struct cs_agent {
    bool (*wanted)(void);
    uint32_t (*function)(const struct callscope_script *script);
    void (*enter)(uint32_t function);
    void (*leave)(uint32_t function, bool by_exception);
    void (*mute)(bool muted);
    void (*switch_stack)(uint32_t origin, uint32_t target);
    int64_t (*room)(void);
    int64_t room_at; /* what that says in this session */
    const uint32_t *(*stopped)(void);
    const uint32_t *stopped_at; /* not 0: calls cost too much, nothing is to be told of them any more */
};

extern struct cs_agent cs_agent CS_HIDDEN;

/* Whether there is an interpreter in this process, and an agent that records it. */
bool cs_python_find(void);
/* ---- hook.c */
/* Have the interpreter call `start` once, when it is about to run a program. */
void cs_python_await(void (*start)(void));

/* Before anything is recorded, with the interpreter ready: whether its objects are what they should be. */
bool cs_python_check(void);

/* ---- functions.c */
/* The id of the function that `code` is of, or of a library's by its callable (PyCFunction, method descriptor); 0: it
 * is not to be recorded. record.h asks for those that it has not met lately. */
uint32_t cs_python_ask_code(object *code);
uint32_t cs_python_ask_native(object *callable);
/* Have the agent record that a function begins or, with SCRIPT_EXIT or SCRIPT_UNWOUND as `type`, ends. */
void cs_python_tell(uint32_t function, uint32_t type);
/* A code object is freed: `extra` is what it kept. */
void cs_python_forget_code(void *extra);

/* ---- start.c */
/* Record from now on, in the session that has been begun, but not what lies in `own_files` (NULL: nothing). With the
 * interpreter's lock, as the end. */
bool callscope_python_start(const char *own_files);
void callscope_python_stop(void);

/* ---- rules.c */
/* What the rules are from now on: the text of the variable CALLSCOPE_PYTHON_RULES. */
void cs_python_choose(const char *text);
/* Whether the user's rules let a function be recorded. */
bool cs_python_is_chosen(const struct callscope_script *script);

/* ---- greenlets.c */
/* Whether functions of that module may go on with another greenlet. */
bool cs_python_may_switch(const char *module);
/* Have the calling thread's switches told, if that is not so. */
void cs_python_watch_switches(void);

/* A new session: ids begin anew. Code of files whose path begins with `own_files` gets none. */
void cs_python_forget_all(const char *own_files);

/* ---- monitoring.c, from 3.12 on; profile.c, up to 3.11 */
bool cs_python_monitor(void);
void cs_python_stop_monitor(void);
bool cs_python_profile(void);
void cs_python_stop_profile(void);

#endif

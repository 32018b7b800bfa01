/* What the bytecode recorder uses of the interpreter: functions found at run time, so that one library serves
 * CPython 2.7 and 3.6 to 3.14, and nothing of Python.h, whose layouts differ between them.
 *
 * Sources of what is written down here: CPython's Doc/c-api and Include/ of each version. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Object Object;
struct Object {
    intptr_t references;
    Object *type;
};

typedef Object *(*CFunction)(Object *, Object *);
typedef Object *FastFunctionType(Object *, Object *const *, intptr_t);
typedef FastFunctionType *FastFunction;
typedef int (*TraceFunction)(Object *, Object *, int, Object *);

/* PyMethodDef: the same in all versions. */
typedef struct {
    const char *name;
    CFunction function;
    int flags;
    const char *documentation;
} Method;
enum { METHOD_TUPLE = 1, METHOD_NO_ARGUMENTS = 4, METHOD_FAST = 0x80 };

/* PyModuleDef of the stable ABI, CPython 3. */
typedef struct {
    Object head;
    void *init;
    intptr_t index;
    Object *copy;
    const char *name, *documentation;
    intptr_t size;
    Method *methods;
    void *slots, *traverse, *clear, *free;
} ModuleDefinition;
enum { MODULE_API = 1013 }; /* PYTHON_API_VERSION of 2.5 to 3.14 */

/* name, result, parameters: in all versions */
#define API_FUNCTIONS(FUNCTION)                                                                                        \
    FUNCTION(Py_IncRef, void, (Object *))                                                                              \
    FUNCTION(Py_DecRef, void, (Object *))                                                                              \
    FUNCTION(PyArg_ParseTuple, int, (Object *, const char *, ...))                                                     \
    FUNCTION(PyCFunction_NewEx, Object *, (Method *, Object *, Object *))                                              \
    FUNCTION(PyErr_Clear, void, (void))                                                                                \
    FUNCTION(PyErr_Fetch, void, (Object **, Object **, Object **))                                                     \
    FUNCTION(PyErr_Restore, void, (Object *, Object *, Object *))                                                      \
    FUNCTION(PyErr_SetString, void, (Object *, const char *))                                                          \
    FUNCTION(PyEval_GetGlobals, Object *, (void))                                                                      \
    FUNCTION(PyEval_SetTrace, void, (TraceFunction, Object *))                                                         \
    FUNCTION(PyDict_GetItemString, Object *, (Object *, const char *))                                                 \
    FUNCTION(PyLong_AsLong, long, (Object *))                                                                          \
    FUNCTION(PyMarshal_WriteObjectToString, Object *, (Object *, int))                                                 \
    FUNCTION(PyObject_Call, Object *, (Object *, Object *, Object *))                                                  \
    FUNCTION(PyObject_CallFunction, Object *, (Object *, const char *, ...))                                           \
    FUNCTION(PyObject_CallMethod, Object *, (Object *, const char *, const char *, ...))                               \
    FUNCTION(PyObject_GetAttrString, Object *, (Object *, const char *))                                               \
    FUNCTION(PyObject_Repr, Object *, (Object *))                                                                      \
    FUNCTION(PyObject_SetAttrString, int, (Object *, const char *, Object *))                                          \
    FUNCTION(PyList_GetItem, Object *, (Object *, intptr_t))                                                           \
    FUNCTION(PyLong_AsLongAndOverflow, long, (Object *, int *))                                                        \
    FUNCTION(PyEval_GetFrame, Object *, (void))                                                                        \
    FUNCTION(PySequence_Contains, int, (Object *, Object *))                                                           \
    FUNCTION(PySequence_GetSlice, Object *, (Object *, intptr_t, intptr_t))                                            \
    FUNCTION(PySequence_Size, intptr_t, (Object *))                                                                    \
    FUNCTION(PyTuple_GetItem, Object *, (Object *, intptr_t))                                                          \
    FUNCTION(PyTuple_Size, intptr_t, (Object *))

/* in some versions only: null elsewhere */
#define API_OPTIONAL(FUNCTION)                                                                                         \
    FUNCTION(PyBytes_AsString, char *, (Object *))                                                                     \
    FUNCTION(PyBytes_Size, intptr_t, (Object *))                                                                       \
    FUNCTION(PyString_AsString, char *, (Object *))                                                                    \
    FUNCTION(PyString_FromStringAndSize, Object *, (const char *, intptr_t))                                           \
    FUNCTION(PyString_Size, intptr_t, (Object *))                                                                      \
    FUNCTION(PyBytes_FromStringAndSize, Object *, (const char *, intptr_t))                                            \
    FUNCTION(PyFrame_GetLasti, int, (Object *))                                                                        \
    FUNCTION(PyInterpreterState_ThreadHead, void *, (void *))                                                          \
    FUNCTION(PyThreadState_GetID, uint64_t, (void *))                                                                  \
    FUNCTION(PyThreadState_GetInterpreter, void *, (void *))                                                           \
    FUNCTION(PyThreadState_GetUnchecked, void *, (void))                                                               \
    FUNCTION(PyThreadState_Next, void *, (void *))                                                                     \
    FUNCTION(PyVectorcall_Function, void *, (Object *))                                                                \
    FUNCTION(_PyThreadState_UncheckedGet, void *, (void))                                                              \
    FUNCTION(PyModule_Create2, Object *, (ModuleDefinition *, int))                                                    \
    FUNCTION(Py_InitModule4_64, Object *, (const char *, Method *, const char *, Object *, int))                       \
    FUNCTION(PyUnicode_AsUTF8, const char *, (Object *))

/* types; null where a version lacks one */
#define API_TYPES(TYPE)                                                                                                \
    TYPE(PyBool_Type)                                                                                                  \
    TYPE(PyBytes_Type)                                                                                                 \
    TYPE(PyFloat_Type)                                                                                                 \
    TYPE(PyInt_Type)                                                                                                   \
    TYPE(PyList_Type)                                                                                                  \
    TYPE(PyLong_Type)                                                                                                  \
    TYPE(PyString_Type)                                                                                                \
    TYPE(PyTuple_Type)                                                                                                 \
    TYPE(PyUnicode_Type)

typedef struct {
#define FUNCTION(name, result, parameters) result(*name) parameters;
    API_FUNCTIONS(FUNCTION)
    API_OPTIONAL(FUNCTION)
#undef FUNCTION
#define TYPE(name) Object *name;
    API_TYPES(TYPE)
#undef TYPE
    void *(*thread_state)(void); /* the calling thread's state; null where it cannot be asked for */
    Object *none;                /* Py_None */
    Object *runtime_error;       /* PyExc_RuntimeError */
} Api;

extern Api api;

/* Find everything; false when this process holds no interpreter of the known kind. */
bool api_open(void);

/* The attribute as an integer, or `otherwise`; an exception is cleared. */
long api_integer(Object *object, const char *attribute, long otherwise);
/* Text of a str object, valid as long as it lives; null when it is none, or has no UTF-8. */
const char *api_text(Object *object);

/* The interpreter's functions, found in the process that this library was loaded into. */
#define _GNU_SOURCE
#include "bytecode_api.h"
#include <dlfcn.h>

Api api;

bool api_open(void) {
    bool complete = true;
#define FUNCTION(name, result, parameters) api.name = (result(*) parameters)dlsym(RTLD_DEFAULT, #name);
    API_OPTIONAL(FUNCTION)
#undef FUNCTION
#define FUNCTION(name, result, parameters)                                                                             \
    api.name = (result(*) parameters)dlsym(RTLD_DEFAULT, #name);                                                       \
    complete = complete && api.name != NULL;
    API_FUNCTIONS(FUNCTION)
#undef FUNCTION
#define TYPE(name) api.name = dlsym(RTLD_DEFAULT, #name);
    API_TYPES(TYPE)
#undef TYPE
    if (api.PyUnicode_AsUTF8 == NULL) {
        api.PyBytes_AsString = api.PyString_AsString;
        api.PyBytes_Size = api.PyString_Size;
        api.PyBytes_FromStringAndSize = api.PyString_FromStringAndSize;
    }
    api.thread_state =
        api.PyThreadState_GetUnchecked ? api.PyThreadState_GetUnchecked : api._PyThreadState_UncheckedGet;
    api.none = dlsym(RTLD_DEFAULT, "_Py_NoneStruct");
    Object **error = dlsym(RTLD_DEFAULT, "PyExc_RuntimeError");
    api.runtime_error = error == NULL ? NULL : *error;
    return complete && api.none != NULL && error != NULL && api.PyBytes_AsString != NULL;
}

long api_integer(Object *object, const char *attribute, long otherwise) {
    Object *value = api.PyObject_GetAttrString(object, attribute);
    long result = value == NULL ? -1 : api.PyLong_AsLong(value);
    if (value == NULL || result < 0) {
        api.PyErr_Clear();
        result = value == NULL ? otherwise : result;
    }
    if (value != NULL) {
        api.Py_DecRef(value);
    }
    return result;
}

const char *api_text(Object *object) {
    const char *text = object == NULL                 ? NULL
                       : api.PyUnicode_AsUTF8 != NULL ? api.PyUnicode_AsUTF8(object)
                                                      : api.PyString_AsString(object);
    if (text == NULL) {
        api.PyErr_Clear();
    }
    return text;
}

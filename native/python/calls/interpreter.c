/* Finds the interpreter's functions, and the agent's. */
#include "interpreter.h"

#include <dlfcn.h>
#include <stdlib.h>

struct cs_python cs_python;
struct cs_agent cs_agent;

static void *find(const char *name, const char *other) {
    void *found = dlsym(RTLD_DEFAULT, name);
    return found || !other ? found : dlsym(RTLD_DEFAULT, other);
}

static bool find_agent(void) {
    cs_agent.wanted = find("callscope_script_wanted", NULL);
    cs_agent.function = find("callscope_script_function", NULL);
    cs_agent.enter = find("callscope_script_enter", NULL);
    cs_agent.leave = find("callscope_script_leave", NULL);
    cs_agent.mute = find("callscope_script_mute", NULL);
    cs_agent.switch_stack = find("callscope_script_switch", NULL);
    cs_agent.room = find("callscope_script_room", NULL);
    cs_agent.stopped = find("callscope_script_stopped", NULL);
    return cs_agent.room && cs_agent.stopped && cs_agent.switch_stack && cs_agent.wanted && cs_agent.function &&
           cs_agent.enter && cs_agent.leave && cs_agent.mute;
}

bool cs_python_find(void) {
    if (!find("PySys_AddAuditHook", NULL) || !find_agent() || !cs_agent.wanted())
        return false;
#define CS_PYTHON_FIND(result, name, parameters)                                                                       \
    if (!(cs_python.name = find(#name, NULL)))                                                                         \
        return false;
    CS_PYTHON_FUNCTIONS(CS_PYTHON_FIND)
#undef CS_PYTHON_FIND
    cs_python.request_extra = find("PyUnstable_Eval_RequestCodeExtraIndex", "_PyEval_RequestCodeExtraIndex");
    cs_python.get_extra = find("PyUnstable_Code_GetExtra", "_PyCode_GetExtra");
    cs_python.set_extra = find("PyUnstable_Code_SetExtra", "_PyCode_SetExtra");
    cs_python.vectorcall = find("PyVectorcall_Function", "_PyVectorcall_Function");
    cs_python.none = find("_Py_NoneStruct", NULL);
    cs_python.builtin_type = find("PyCFunction_Type", NULL);
    cs_python.builtin_method_type = find("PyCMethod_Type", NULL);
    cs_python.descriptor_type = find("PyMethodDescr_Type", NULL);
    cs_python.class_descriptor_type = find("PyClassMethodDescr_Type", NULL);
    cs_python.module_type = find("PyModule_Type", NULL);
    cs_python.type_type = find("PyType_Type", NULL);
    const char *version = cs_python.Py_GetVersion();
    cs_python.minor = version[0] == '3' && version[1] == '.' ? atoi(version + 2) : 0;
    return cs_python.request_extra && cs_python.get_extra && cs_python.set_extra && cs_python.none &&
           cs_python.builtin_type && cs_python.builtin_method_type && cs_python.descriptor_type &&
           cs_python.class_descriptor_type && cs_python.module_type && cs_python.type_type && cs_python.minor >= 9;
}

/* A builtin function's memory is what interpreter.h says, judged by `len`. */
static bool check_builtin(void) {
    object *module = cs_python.PyImport_ImportModule("builtins");
    object *len = module ? cs_python.PyObject_GetAttrString(module, "len") : NULL;
    bool is_right = len && len->type == cs_python.builtin_type &&
                    ((struct method **)(len + 1))[0]->code == cs_python.PyCFunction_GetFunction(len);
    if (len)
        cs_python.Py_DecRef(len);
    if (module)
        cs_python.Py_DecRef(module);
    return is_right;
}

bool cs_python_check(void) {
    cs_agent.mute(true);
    if (!cs_python.is_checked)
        cs_python.extra_index = cs_python.request_extra(cs_python_forget_code);
    cs_python.is_checked = true;
    bool is_right = cs_python.extra_index >= 0 && check_builtin();
    cs_python.PyErr_Clear();
    cs_agent.mute(false);
    cs_agent.room_at = cs_agent.room();
    cs_agent.stopped_at = cs_agent.stopped();
    return is_right;
}

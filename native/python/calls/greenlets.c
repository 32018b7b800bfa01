/* Greenlets: many Python stacks of one thread at the same addresses. Their library tells of each switch whom it is
 * asked to (greenlet.settrace, which is a thread's own). */
#include <string.h>

#include "interpreter.h"

enum { VARIADIC = 0x1 }; /* METH_VARARGS */

static __thread bool is_watched;

bool cs_python_may_switch(const char *module) {
    return !strncmp(module, "greenlet", 8) || !strncmp(module, "gevent", 6);
}

/* A greenlet's number: its address is its own as long as it lives, and what is not 0 of it tells. */
static uint32_t number_of(const object *greenlet) {
    return (uint32_t)((uintptr_t)greenlet >> 3) | 1;
}

/* (event, (origin, target)), called when the target goes on. */
static object *switched(object *self, object *arguments) {
    (void)self;
    object *both = cs_python.PyTuple_GetItem(arguments, 1);
    object *origin = both ? cs_python.PyTuple_GetItem(both, 0) : NULL;
    object *target = both ? cs_python.PyTuple_GetItem(both, 1) : NULL;
    if (origin && target)
        cs_agent.switch_stack(number_of(origin), number_of(target));
    cs_python.PyErr_Clear();
    cs_python.Py_IncRef(cs_python.none);
    return cs_python.none;
}

void cs_python_watch_switches(void) {
    static struct method method = {"callscope", (void *)switched, VARIADIC, NULL};
    if (is_watched)
        return;
    is_watched = true;
    object *type, *value, *traceback;
    cs_agent.mute(true);
    cs_python.PyErr_Fetch(&type, &value, &traceback);
    object *module = cs_python.PyImport_ImportModule("greenlet");
    object *function = module ? cs_python.PyCFunction_NewEx(&method, NULL, NULL) : NULL;
    object *before = function ? cs_python.PyObject_CallMethod(module, "settrace", "O", function) : NULL;
    object *kept[] = {module, function, before};
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++)
        if (kept[i])
            cs_python.Py_DecRef(kept[i]);
    cs_python.PyErr_Restore(type, value, traceback);
    cs_agent.mute(false);
}

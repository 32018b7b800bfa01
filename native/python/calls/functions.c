/* Which id a function has: told to the agent at its first call, found again in the code object or by the method. An id
 * of 0 is remembered too: there was no room, or it was not chosen. */
#include <stdlib.h>
#include <string.h>

#include "callscope/records.h"
#include "record.h"

/* Open addressing by a method's address; entries are never removed. Used with the interpreter's lock held. */
struct native {
    const struct method *method;
    uint32_t function;
    bool may_switch; /* to another greenlet */
};

struct known cs_python_codes[KNOWN], cs_python_natives[KNOWN];

static uint32_t session; /* how many there were before this one */
static char *own;        /* files that are not recorded begin so */

static struct native *natives;
static uint64_t native_count, native_mask;

static void drop(object *kept) {
    if (kept)
        cs_python.Py_DecRef(kept);
}

/* The text of a str, "" for anything else. */
static const char *text_of(object *value) {
    const char *text = value && value != cs_python.none ? cs_python.PyUnicode_AsUTF8AndSize(value, NULL) : NULL;
    cs_python.PyErr_Clear();
    return text ? text : "";
}

static object *attribute(object *of, const char *name) {
    object *found = cs_python.PyObject_GetAttrString(of, name);
    if (!found)
        cs_python.PyErr_Clear();
    return found;
}

/* Run `tell` without a trace of it in the recording or in the interpreter's pending exception. */
static uint32_t quietly(uint32_t (*tell)(object *), object *of) {
    object *type, *value, *traceback;
    cs_agent.mute(true);
    cs_python.PyErr_Fetch(&type, &value, &traceback);
    uint32_t function = tell(of);
    cs_python.PyErr_Restore(type, value, traceback);
    cs_agent.mute(false);
    return function;
}

/* The frame that is being entered is the current one: its globals name the module. The program itself goes by its
 * file. */
static object *module_of_frame(void) {
    object *globals = cs_python.PyEval_GetGlobals();
    object *name = globals ? cs_python.PyMapping_GetItemString(globals, "__name__") : NULL;
    cs_python.PyErr_Clear();
    if (name && !strcmp(text_of(name), "__main__")) {
        drop(name);
        return NULL;
    }
    return name;
}

static uint32_t tell_code(object *code) {
    object *name = attribute(code, cs_python.minor >= 11 ? "co_qualname" : "co_name");
    object *file = attribute(code, "co_filename"), *number = attribute(code, "co_firstlineno");
    object *module = module_of_frame();
    long line = number ? cs_python.PyLong_AsLong(number) : 0;
    cs_python.PyErr_Clear();
    struct callscope_script script = {CS_SCRIPT_CODE, line > 0 ? (uint32_t)line : 0, 0, text_of(name), text_of(file),
                                      text_of(module)};
    bool is_own = own && !strncmp(script.file, own, strlen(own));
    uint32_t function = is_own || !cs_python_is_chosen(&script) ? 0 : cs_agent.function(&script);
    drop(name);
    drop(file);
    drop(number);
    drop(module);
    return function;
}

uint32_t cs_python_ask_code(object *code) {
    void *extra = NULL;
    if (cs_python.get_extra(code, cs_python.extra_index, &extra) != 0)
        cs_python.PyErr_Clear();
    struct known *known = extra;
    if (known && known->session != session) {
        *known = (struct known){code, quietly(tell_code, code), session};
    } else if (!known) {
        if (!(known = malloc(sizeof *known)))
            return 0;
        *known = (struct known){code, quietly(tell_code, code), session};
        if (cs_python.set_extra(code, cs_python.extra_index, known) != 0) {
            cs_python.PyErr_Clear();
            free(known);
            return 0; /* nobody would say when it is freed */
        }
    }
    cs_python_codes[cs_python_place(code)] = *known;
    return known->function;
}

void cs_python_forget_code(void *extra) {
    struct known *known = extra, *place = &cs_python_codes[cs_python_place(known->what)];
    if (place->what == known->what)
        place->what = NULL;
    free(known);
}

static const struct method *method_of(const object *callable) {
    int word = cs_python_is_builtin(callable) ? BUILTIN_METHOD : DESCRIPTOR_METHOD;
    return ((const struct method *const *)callable)[word];
}

/* The descriptor of `method` in the class of `of`, or in one that it inherits from; or NULL. */
static object *definition(object *of, const struct method *method) {
    object *class = of->type == cs_python.type_type ? of : of->type;
    object *order = attribute(class, "__mro__"), *found = NULL;
    ssize_t count = order ? cs_python.PyTuple_Size(order) : 0;
    for (ssize_t i = 0; i < count && !found; i++) {
        object *members = attribute(cs_python.PyTuple_GetItem(order, i), "__dict__");
        object *member = members ? cs_python.PyMapping_GetItemString(members, method->name) : NULL;
        bool is_method =
            member && (member->type == cs_python.descriptor_type || member->type == cs_python.class_descriptor_type);
        if (is_method && method_of(member) == method)
            found = member;
        else
            drop(member);
        drop(members);
    }
    cs_python.PyErr_Clear();
    drop(order);
    return found;
}

static bool told_may_switch; /* of the function that was told of last */

static uint32_t tell_native(object *callable) {
    const struct method *method = method_of(callable);
    object *self = attribute(callable, "__self__"), *defined = NULL;
    if (self && self != cs_python.none && self->type != cs_python.module_type)
        defined = definition(self, method); /* else it would be named after a class that only inherits it */
    object *named = defined ? defined : callable;
    object *name = attribute(named, "__qualname__"), *module = attribute(named, "__module__");
    object *class = *text_of(module) ? NULL : attribute(named, "__objclass__");
    if (class) {
        drop(module);
        module = attribute(class, "__module__");
    }
    struct callscope_script script = {CS_SCRIPT_NATIVE, 0, (uint64_t)method->code, text_of(name), "", text_of(module)};
    script.name = *script.name ? script.name : method->name;
    told_may_switch = cs_python_may_switch(script.module);
    uint32_t function = cs_python_is_chosen(&script) ? cs_agent.function(&script) : 0;
    object *kept[] = {self, defined, name, module, class};
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++)
        drop(kept[i]);
    return function;
}

static struct native *slot_of(const struct method *method) {
    uint64_t at = ((uintptr_t)method >> 4) * 0x9e3779b97f4a7c15ull >> 32 & native_mask;
    while (natives[at].method && natives[at].method != method)
        at = (at + 1) & native_mask;
    return &natives[at];
}

static bool grow(void) {
    struct native *old = natives;
    uint64_t size = old ? native_mask + 1 : 0, wanted = old ? size * 2 : 1024;
    struct native *table = calloc(wanted, sizeof *table);
    if (!table)
        return false;
    natives = table;
    native_mask = wanted - 1;
    for (uint64_t i = 0; i < size; i++)
        if (old[i].method)
            *slot_of(old[i].method) = old[i];
    free(old);
    return true;
}

uint32_t cs_python_ask_native(object *callable) {
    const struct method *method = method_of(callable);
    if (!method || (native_count * 2 >= native_mask && !grow()))
        return 0;
    struct native *slot = slot_of(method);
    if (!slot->method) {
        uint32_t function = quietly(tell_native, callable);
        slot = slot_of(method); /* telling may have called something new */
        if (!slot->method)
            native_count++;
        *slot = (struct native){method, function, told_may_switch};
    }
    if (slot->may_switch)
        cs_python_watch_switches();
    else if (method->code != cs_python.start_thread) /* these two are to be asked about at each call */
        cs_python_natives[cs_python_place(method)] = (struct known){method, slot->function, session};
    return slot->function;
}

void cs_python_tell(uint32_t function, uint32_t type) {
    if (function && type)
        cs_agent.leave(function, type == CS_SCRIPT_UNWOUND);
    else if (function)
        cs_agent.enter(function);
}

void cs_python_forget_all(const char *own_files) {
    free(own);
    own = own_files ? strdup(own_files) : NULL;
    session++;
    memset(cs_python_codes, 0, sizeof cs_python_codes);
    memset(cs_python_natives, 0, sizeof cs_python_natives);
    free(natives);
    natives = NULL;
    native_count = native_mask = 0;
}

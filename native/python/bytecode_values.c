/* The values on a frame's stack as text, the top last. No code of the program's runs for it: objects of builtin types,
 * exactly these, are shown by value; of all others the type's name and the address. */
#include "bytecode_routes.h"
#include <stdio.h>
#include <string.h>

enum { MOST_VALUES = 8, MOST_ELEMENTS = 4, LONGEST_VALUE = 48, TEXT_BYTES = 2048 };
enum { TYPE_NAME = 24 }; /* tp_name, in all versions */

/* Include/frameobject.h, cpython/frameobject.h and internal/pycore_frame.h of each version. */
static const struct {
    int oldest, newest;
    uint16_t inner; /* where a frame object has the frame proper; 0: it is that itself */
    uint16_t base;  /* pointer to the stack, or, with `inner`, the locals that it follows */
    uint16_t top;   /* pointer behind the stack; the number of values on it (3.10); locals included (3.11) */
} layouts[] = {
    {207, 309, 0, 64, 72},
    {310, 310, 0, 64, 80},
    {311, 313, 24, 72, 64},
};

typedef struct {
    char text[TEXT_BYTES];
    size_t size;
} Text;

static void add(Text *out, const char *text) {
    size_t bytes = strlen(text);
    if (out->size + bytes < TEXT_BYTES) {
        memcpy(out->text + out->size, text, bytes);
        out->size += bytes;
    }
}

static void add_repr(Text *out, Object *value) {
    Object *repr = api.PyObject_Repr(value);
    const char *text = api_text(repr);
    char shown[LONGEST_VALUE * 4];
    snprintf(shown, sizeof shown, "%s", text == NULL ? "?" : text);
    add(out, shown);
    api.PyErr_Clear();
    if (repr != NULL) {
        api.Py_DecRef(repr);
    }
}

static void add_text(Text *out, Object *value) {
    bool longer = api.PySequence_Size(value) > LONGEST_VALUE;
    Object *shown = longer ? api.PySequence_GetSlice(value, 0, LONGEST_VALUE) : value;
    if (shown != NULL) {
        add_repr(out, shown);
    }
    if (longer) {
        add(out, "...");
        if (shown != NULL) {
            api.Py_DecRef(shown);
        }
    }
}

static void add_integer(Text *out, Object *value) {
    int overflow = 0;
    long number = api.PyLong_AsLongAndOverflow(value, &overflow);
    char shown[32];
    snprintf(shown, sizeof shown, "%ld", number);
    add(out, overflow ? "<int of more than 64 bits>" : shown);
}

static void add_value(Text *out, Object *value, int depth);

static void add_elements(Text *out, Object *value, Object *(*get)(Object *, intptr_t), const char *brackets) {
    intptr_t count = api.PySequence_Size(value);
    char bracket[2] = {brackets[0], 0};
    add(out, bracket);
    for (intptr_t i = 0; i < count && i < MOST_ELEMENTS; i++) {
        add(out, i ? ", " : "");
        add_value(out, get(value, i), 1);
    }
    add(out, count > MOST_ELEMENTS ? ", ..." : "");
    bracket[0] = brackets[1];
    add(out, bracket);
}

static void add_value(Text *out, Object *value, int depth) {
    if (value == NULL) {
        add(out, "<NULL>");
        return;
    }
    const Object *type = value->type;
    if (value == api.none || type == api.PyBool_Type || type == api.PyFloat_Type) {
        add_repr(out, value);
    } else if (type == api.PyLong_Type || (type == api.PyInt_Type && type != NULL)) {
        add_integer(out, value);
    } else if (type == api.PyUnicode_Type || type == api.PyBytes_Type || type == api.PyString_Type) {
        add_text(out, value);
    } else if (depth == 0 && type == api.PyTuple_Type) {
        add_elements(out, value, api.PyTuple_GetItem, "()");
    } else if (depth == 0 && type == api.PyList_Type) {
        add_elements(out, value, api.PyList_GetItem, "[]");
    } else {
        char shown[128];
        snprintf(shown, sizeof shown, "<%.80s at %p>", *(const char **)((const char *)type + TYPE_NAME), (void *)value);
        add(out, shown);
    }
}

/* How many variables of 3.11 on lie before the stack: a cell of a parameter shares its place. */
static intptr_t count_locals(Object *code) {
    Object *names = api.PyObject_GetAttrString(code, "co_varnames");
    Object *cells = api.PyObject_GetAttrString(code, "co_cellvars");
    Object *others = api.PyObject_GetAttrString(code, "co_freevars");
    intptr_t count = api.PyTuple_Size(names) + api.PyTuple_Size(cells) + api.PyTuple_Size(others);
    for (intptr_t i = 0; i < api.PyTuple_Size(cells); i++) {
        count -= api.PySequence_Contains(names, api.PyTuple_GetItem(cells, i)) == 1;
    }
    api.Py_DecRef(names);
    api.Py_DecRef(cells);
    api.Py_DecRef(others);
    return count;
}

/* CPython 3.12 on; -1 where it is not known. */
static intptr_t height(const Code *code, uint32_t at) {
    if (code->heights == NULL || at >= api.PyBytes_Size(code->heights)) {
        return -1;
    }
    return *((uint8_t *)api.PyBytes_AsString(code->heights) + at);
}

void values_record(Object *frame, Object *object, uint32_t at) {
    Code *code = code_of(object);
    if (code->number == 0 || frame == NULL) {
        return;
    }
    if (code->stack_size == 0) {
        Object *heights = choice.version >= 312 ? api.PyObject_CallFunction(choice.heights, "O", object) : NULL;
        api.PyErr_Clear();
        code = code_of(object); /* Python code ran: the table of code objects may have grown */
        code->heights = heights;
        code->stack_size = 1 + (uint32_t)api_integer(object, "co_stacksize", 0);
        code->locals = choice.version >= 311 ? (uint32_t)count_locals(object) : 0;
    }
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (choice.version < layouts[i].oldest || choice.version > layouts[i].newest) {
            continue;
        }
        char *place = layouts[i].inner ? *(char **)((char *)frame + layouts[i].inner) : (char *)frame;
        char *top = place + layouts[i].top;
        Object **base = layouts[i].inner ? (Object **)(place + layouts[i].base) + code->locals
                                         : *(Object ***)(place + layouts[i].base);
        intptr_t count = choice.version >= 312  ? height(code, at)
                         : choice.version < 310 ? (*(Object ***)top == NULL ? 0 : *(Object ***)top - base)
                                                : *(int32_t *)top - (intptr_t)code->locals;
        if (count < 0 || count >= code->stack_size) {
            return;
        }
        Text out = {.size = 0};
        add(&out, count > MOST_VALUES ? "[..., " : "[");
        for (intptr_t at = count > MOST_VALUES ? count - MOST_VALUES : 0; at < count; at++) {
            add_value(&out, base[at], 0);
            add(&out, at + 1 < count ? ", " : "");
        }
        add(&out, "]");
        stream_values(out.text, out.size);
    }
}

/* CPython 2.7 and 3.6 have no events of instructions, but of lines: so each instruction begins one.
 *
 * The table of lines, co_lnotab, has pairs of bytes: how much further the next address is, and the next line
 * (Objects/lnotab_notes.txt). A line begins where the line's difference is not 0. */
#include "bytecode_routes.h"
#include <stdlib.h>
#include <string.h>

enum { HAVE_ARGUMENT = 90 };

/* The line of each code unit. */
static bool read_lines(Code *code, const uint8_t *table, size_t bytes, uint32_t units, long first) {
    code->lines = calloc(units + 1, sizeof *code->lines);
    if (code->lines == NULL) {
        return false;
    }
    bool wide = choice.version >= 300;
    uint32_t done = 0, address = 0;
    long line = first;
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        address += table[i];
        for (; done < units && (done << wide) < address; done++) {
            code->lines[done] = (int32_t)line;
        }
        line += wide ? (int8_t)table[i + 1] : table[i + 1];
    }
    for (; done < units; done++) {
        code->lines[done] = (int32_t)line;
    }
    code->line_count = units;
    return true;
}

/* CPython 2.7: differences are never negative, so the lines are wrong; the trace function mends them in each frame. */
static size_t each_its_line(uint8_t *out, const uint8_t *bytecode, uint32_t units) {
    size_t size = 0;
    for (uint32_t at = 0; at < units; size += 2) {
        uint32_t length = bytecode[at] >= HAVE_ARGUMENT ? 3 : 1;
        out[size] = (uint8_t)length;
        out[size + 1] = 1;
        at += length;
    }
    return size;
}

/* CPython 3.6: one line further, and back to the right one at once. */
static size_t each_its_line_and_back(uint8_t *out, const Code *code, long first) {
    size_t size = 0;
    long line = first;
    for (uint32_t unit = 0; unit < code->line_count; unit++) {
        long difference = code->lines[unit] - line - 1;
        line = code->lines[unit];
        out[size++] = unit == 0 ? 0 : 2;
        out[size++] = 1;
        do {
            long step = difference > 127 ? 127 : difference < -128 ? -128 : difference;
            out[size++] = 0;
            out[size++] = (uint8_t)step;
            difference -= step;
        } while (difference != 0);
    }
    return size;
}

bool lines_replace(Code *code, const Layout *layout) {
    if (code->lines != NULL) {
        return true;
    }
    Object **place = (Object **)((char *)code->code + layout->lnotab), *old = *place;
    Object *bytecode = api.PyObject_GetAttrString(code->code, "co_code");
    bool wide = choice.version >= 300;
    intptr_t bytes = api.PyBytes_Size(bytecode);
    uint32_t units = (uint32_t)(bytes >> wide);
    long first = api_integer(code->code, "co_firstlineno", 1);
    if (!read_lines(code, (const uint8_t *)api.PyBytes_AsString(old), (size_t)api.PyBytes_Size(old), units, first)) {
        api.Py_DecRef(bytecode);
        return false;
    }
    size_t room = 0;
    for (uint32_t unit = 0; unit < units; unit++) {
        long step = labs((long)code->lines[unit] - (unit ? code->lines[unit - 1] : first));
        room += 2 * (4 + (size_t)step / 127);
    }
    uint8_t *table = malloc(room + 2);
    size_t size = table == NULL ? 0
                  : wide        ? each_its_line_and_back(table, code, first)
                                : each_its_line(table, (const uint8_t *)api.PyBytes_AsString(bytecode), units);
    Object *fresh = table == NULL ? NULL : api.PyBytes_FromStringAndSize((const char *)table, (intptr_t)size);
    free(table);
    api.Py_DecRef(bytecode);
    if (fresh != NULL) {
        *place = fresh; /* the old one stays alive: the program may hold a borrowed reference to it */
    }
    return fresh != NULL;
}

/* How the interpreter tells of instructions: by its version. Each opens before the program begins; false, with an
 * exception set, when this interpreter is not what it should be. */
#pragma once
#include "bytecode_stream.h"

/* CPython 3.12 on: events of sys.monitoring, of each instruction or, where that is chosen, of what they can be inferred
 * from. `monitoring`: that module. */
bool monitoring_open(Object *monitoring);
/* The code unit of an offset that a callback is given. */
uint32_t monitoring_position(Object *offset);
/* What a callback returns to be told no more of this place. */
Object *monitoring_disable(void);

/* Callbacks where instructions are inferred. */
FastFunctionType infer_branch, infer_call, infer_throw, infer_return, infer_yield, infer_raise, infer_reraise,
    infer_handled, infer_unwind;
/* A frame of chosen code begins, or goes on; `at`: position of its last instruction + 1. */
void infer_begin(const Code *code, uint32_t at);
/* CPython 2.7 and 3.6: a trace function of C, and code objects in which each instruction begins a line. 3.7 to 3.11: a
 * trace function of C, and frames that trace opcodes. `frame`: the one that runs; `threads`: the module that starts
 * some. */
bool settrace_open(Object *frame, Object *threads);

/* Where the frames and code objects of these versions have what is read here, in bytes; a position of 0: nowhere. */
typedef struct {
    int oldest, newest; /* versions, 100 x major + minor */
    uint16_t code, lasti, lineno, trace, trace_lines, trace_opcodes;
    uint16_t lnotab; /* in code objects */
} Layout;

/* Of CPython 2.7 and 3.6, for code objects new to the recorder: lines as `code` had them, and each instruction its own.
 */
bool lines_replace(Code *code, const Layout *layout);

/* The stack of `frame`, which runs `code`, before the instruction at `at`, recorded next; nothing when it is not
 * chosen.
 */
void values_record(Object *frame, Object *code, uint32_t at);

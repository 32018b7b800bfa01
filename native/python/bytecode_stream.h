/* The file of executed instructions, mapped while it is written, and the file of the code objects they lie in.
 *
 * Instructions, in the order of execution (the interpreter's lock gives one to all threads). Every token begins with a
 * byte that is not 0; zeros fill the end of each window of WINDOW_BYTES. Numbers are LEB128 of the value + 1, whose
 * last byte is never 0. Positions are in the interpreter's code units (2 bytes; 1 in CPython 2).
 *
 *     1..223          an instruction of the current code object, at its last position + byte - NEAR_BIAS
 *     TOKEN_FAR       an instruction of the current code object: position
 *     TOKEN_CODE      another code object is current: number, position of the instruction executed
 *     TOKEN_START     a frame begins or is resumed: number of its code object, which is current from here on, and the
 *                     position of its last instruction + 1
 *     TOKEN_END       a frame returns, yields or is unwound: number
 *     TOKEN_THREAD    what follows is of this thread: number, from 1
 *     TOKEN_VALUES    the stack before the next instruction: bytes, then as many of text
 *     TOKEN_FULL      there was no room for what followed
 *
 * Where instructions are inferred (bytecode_infer.c), the file begins with TOKEN_INFER. Tokens then are about the
 * current frame, one of those at work, and positions are where it goes on:
 *
 *     1..223          a branch or jump leads to: last position + byte - NEAR_BIAS
 *     TOKEN_FAR       the same: position
 *     TOKEN_START     a frame begins or is resumed, called by the current one, and is current from here on
 *     TOKEN_THROW     the same, but it goes on where an exception leads
 *     TOKEN_AT        the frame has begun to execute the instruction at, or in whose caches is: position
 *     TOKEN_HANDLED   an exception, at the instruction last told of, leads to: position
 *     TOKEN_RETURN    the frame returns; its caller is current from here on
 *     TOKEN_YIELD     the frame yields, at the instruction last told of; likewise
 *     TOKEN_UNWIND    the frame is left by an exception; likewise
 *     TOKEN_FRAME     another frame is current: the how-manieth that began, from 1; 0: none
 *     TOKEN_THREAD    what follows is of this thread: number, from 1; no frame is current
 *
 * Code objects: number (32 bits), bytes (32 bits), then as many of marshal data. */
#pragma once
#include "bytecode_api.h"

enum { WINDOW_BYTES = 1 << 22, LONGEST_TOKEN = 64, NEAR_BIAS = 97, NEAR_LIMIT = 0xE0 };
enum {
    TOKEN_FAR = 0xE0,
    TOKEN_CODE,
    TOKEN_START,
    TOKEN_END,
    TOKEN_THREAD,
    TOKEN_VALUES,
    TOKEN_FULL,
    TOKEN_INFER,
    TOKEN_THROW,
    TOKEN_AT,
    TOKEN_HANDLED,
    TOKEN_RETURN,
    TOKEN_YIELD,
    TOKEN_UNWIND,
    TOKEN_FRAME,
};

typedef struct {
    uint8_t *cursor, *limit;
    Object *code; /* the current code object, or null */
    uint32_t at;  /* position of its last instruction */
    uintptr_t thread;
} Stream;

extern Stream stream;

/* What is known of a code object. It is kept alive, for its address to stay its own. */
typedef struct {
    Object *code;
    uint32_t number; /* 0: not recorded */
    uint32_t line_count;
    bool local_events;   /* CPython 3.12 on: its events are switched on */
    int32_t *lines;      /* CPython 2: line of each position */
    uint32_t stack_size; /* of values: 1 + the most that its stack holds; 0: not asked for yet */
    uint32_t locals;     /* of values, CPython 3.11 on: variables before the stack */
    Object *heights;     /* of values, CPython 3.12 on: see Choice; null: unknown */
} Code;

enum { INFER_ALWAYS = 2 };

/* Which code objects are recorded: those of the main program's file, or of files that match, or all; by name, if any.
 */
typedef struct {
    Object *names, *files; /* tuples of str */
    bool every_file;
    int version;     /* of the interpreter: 100 x major + minor */
    long limit;      /* instructions to record at most, about; 0: no limit */
    int values;      /* the stack's values, too */
    int infer;       /* not each instruction, but what they can be inferred from; INFER_ALWAYS: or none */
    Object *heights; /* of values, CPython 3.12 on: gives the height of the stack before each code unit, as bytes */
} Choice;

extern Choice choice;

/* Begin both files, which exist; false when they cannot be mapped. Paths are copied. */
bool stream_open(const char *events, const char *codes);
/* The known code object; a new one is looked at, and written to its file when chosen. Never null; valid until the next
 * call. Before the main program has begun, code objects other than its own are unknown: `code` is null. */
Code *code_of(Object *code);

/* Write the parts of tokens; of a number, with its token, there is room for two. */
void stream_token(uint8_t kind);
void stream_number(uint32_t number);
/* A position of the current code: near or far. */
void stream_position(uint32_t at);
/* What follows is of this thread: nothing when it was before. */
void stream_thread(void);

void stream_far(Object *code, uint32_t at);
void stream_start(const Code *code, uint32_t at);
void stream_end(const Code *code);
void stream_values(const char *text, size_t bytes);

static inline uintptr_t this_thread(void) {
    uintptr_t pointer;
    __asm__("mov %%fs:0, %0" : "=r"(pointer));
    return pointer;
}

/* An instruction of a chosen code object is about to be executed at `at`. */
static inline void stream_instruction(Object *code, uint32_t at) {
    uint32_t token = at - stream.at + NEAR_BIAS;
    if (__builtin_expect(code == stream.code && this_thread() == stream.thread && token - 1 < NEAR_LIMIT - 1 &&
                             stream.cursor < stream.limit,
                         true)) {
        *stream.cursor++ = (uint8_t)token;
        stream.at = at;
    } else {
        stream_far(code, at);
    }
}

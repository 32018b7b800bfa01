/* The interpreter's own frames, CPython 3.12 and 3.13, and which of them are at work in recorded code. */
#pragma once
#include "bytecode_stream.h"

typedef struct Frame Frame;

/* A frame at work. It is kept from its begin to its end, under a number that counts begins. */
typedef struct {
    const Frame *frame;  /* null: an empty place */
    const Frame *caller; /* the innermost recorded one when it began; null without one */
    uint32_t number, caller_at;
} Live;

/* Whether the frames of this interpreter are laid out as expected. `frame`: the frame object of what runs. */
bool frames_open(Object *frame);
/* The frame that the calling thread runs. */
const Frame *frame_running(void);
/* What it executes, or is about to go on at, in code units; may lie in the caches behind an instruction. */
uint32_t frame_at(const Frame *frame);
/* The nearest frame at work in the chain that begins with `frame`; null when there is none. */
const Frame *frame_live(const Frame *frame);
/* The one below in the chain, or null. */
const Frame *frame_before(const Frame *frame);

/* The thread that runs, for frame_of_thread(). */
typedef struct {
    void *state;
    uint64_t id;
} ThreadMark;
ThreadMark thread_mark(void);
/* The frame that another thread will go on with; null when that thread is gone. */
const Frame *frame_of_thread(ThreadMark thread);

Live *live_find(const Frame *frame);
/* A new one; null without memory. */
Live *live_add(const Frame *frame);
void live_remove(Live *live);

/* CPython 3.12 executes two STORE_FAST as one instruction, and a frame then tells of the first while the second calls
 * a finaliser: have them executed one by one in a code object that has not begun. */
void frames_split_pairs(Object *code);

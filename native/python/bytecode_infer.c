/* CPython 3.12 and 3.13: no event an instruction, but of what cannot be inferred; the decoder walks from one to the
 * next through the code.
 *
 * Told is where a branch or jump goes, where an exception leads, when frames begin and end, and, whenever something
 * else is executed in between, what instruction the frame is at: it stands in the frame, as the interpreter keeps it
 * for tracebacks. */
#include "bytecode_frames.h"
#include "bytecode_routes.h"

static const Frame *current; /* what the tokens are about; null: none */
static uint32_t marked;      /* 1 + the position in the last token, when that was TOKEN_AT; 0: it was not */
static uint32_t begun;
static ThreadMark running;

static void mark_at(uint32_t at) {
    if (marked != at + 1) {
        stream_token(TOKEN_AT);
        stream_number(at);
        marked = at + 1;
    }
}

static void mark(const Frame *frame) {
    mark_at(frame_at(frame));
}

/* When another stack goes on (greenlets), it is told first what the last frame is at. */
static void make_current(const Frame *frame) {
    if (frame != current) {
        if (current != NULL) {
            mark(current);
        }
        const Live *live = frame == NULL ? NULL : live_find(frame);
        stream_token(TOKEN_FRAME);
        stream_number(live == NULL ? 0 : live->number);
        current = frame;
        marked = 0;
    }
}

/* Of the thread that ran before, what it is at is told first. */
static void check_thread(void) {
    if (this_thread() == stream.thread) {
        return;
    }
    const Frame *left = running.state == NULL ? NULL : frame_live(frame_of_thread(running));
    if (left != NULL) {
        make_current(left);
        mark(left);
    }
    stream_thread();
    running = thread_mark();
    current = NULL;
    marked = 0;
}

static void end(const Frame *frame, uint8_t kind) {
    check_thread();
    Live *live = live_find(frame);
    if (live == NULL) {
        return;
    }
    make_current(frame);
    stream_token(kind);
    current = live->caller;
    stream.at = live->caller_at;
    marked = current == NULL ? 0 : live->caller_at + 1;
    live_remove(live);
}

static void begin(const Code *code, uint32_t at, uint8_t kind) {
    const Frame *frame = frame_running();
    check_thread();
    if (live_find(frame) != NULL) {
        end(frame, TOKEN_UNWIND); /* of what was there before, no event told */
    }
    const Frame *caller = frame_live(frame_before(frame));
    make_current(caller);
    if (caller != NULL) {
        mark(caller);
    }
    Live *live = live_add(frame);
    if (live == NULL) {
        return;
    }
    live->number = ++begun;
    live->caller = caller;
    live->caller_at = caller == NULL ? 0 : frame_at(caller);
    stream_token(kind);
    stream_number(code->number);
    stream_number(at);
    current = frame;
    marked = 0;
    stream.at = at - 1;
}

/* The frame that runs becomes current; null when it is not recorded. */
static const Frame *told(Object *code) {
    if (code_of(code)->number == 0) {
        return NULL;
    }
    const Frame *frame = frame_running();
    check_thread();
    if (live_find(frame) == NULL) {
        return NULL;
    }
    make_current(frame);
    return frame;
}

static void go_far(Object *code, uint32_t at) {
    if (told(code) != NULL) {
        stream_position(at);
        marked = 0;
    }
}

/* A branch or jump: code, offset, destination. */
Object *infer_branch(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    uint32_t at = monitoring_position(arguments[2]), token = at - stream.at + NEAR_BIAS;
    if (__builtin_expect(frame_running() == current && this_thread() == stream.thread && token - 1 < NEAR_LIMIT - 1 &&
                             stream.cursor < stream.limit,
                         true)) {
        *stream.cursor++ = (uint8_t)token;
        stream.at = at;
        marked = 0;
    } else {
        go_far(arguments[0], at);
    }
    return api.none;
}

/* Something is called. Told once for each place, for a call that ends the process. */
Object *infer_call(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    const Frame *frame = told(arguments[0]);
    if (frame != NULL) {
        mark(frame);
    }
    return monitoring_disable();
}

void infer_begin(const Code *code, uint32_t at) {
    begin(code, at, TOKEN_START);
}

Object *infer_throw(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    const Code *code = code_of(arguments[0]);
    if (code->number != 0) {
        begin(code, monitoring_position(arguments[1]) + 1, TOKEN_THROW);
    }
    return api.none;
}

Object *infer_return(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)arguments, (void)count;
    end(frame_running(), TOKEN_RETURN);
    return api.none;
}

Object *infer_yield(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    if (told(arguments[0]) != NULL) {
        mark_at(monitoring_position(arguments[1]));
        end(current, TOKEN_YIELD);
    }
    return api.none;
}

/* A signal's handler may raise before the interpreter tells that the frame begins. */
Object *infer_raise(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    const Frame *frame = told(arguments[0]);
    if (frame != NULL) {
        mark(frame);
    } else {
        const Code *code = code_of(arguments[0]);
        if (code->number != 0) {
            begin(code, frame_at(frame_running()) + 1, TOKEN_THROW);
        }
    }
    return api.none;
}

/* Where an exception is raised again the frame may tell of where it came from (RERAISE). */
Object *infer_reraise(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    if (told(arguments[0]) != NULL) {
        mark_at(monitoring_position(arguments[1]));
    }
    return api.none;
}

/* An exception leads to the given offset. */
Object *infer_handled(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    if (told(arguments[0]) != NULL) {
        stream.at = monitoring_position(arguments[1]);
        stream_token(TOKEN_HANDLED);
        stream_number(stream.at);
        marked = 0;
    }
    return api.none;
}

Object *infer_unwind(Object *self, Object *const *arguments, intptr_t count) {
    (void)self, (void)count;
    if (told(arguments[0]) != NULL) {
        end(current, TOKEN_UNWIND);
    }
    return api.none;
}

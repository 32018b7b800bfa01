/* Frames of the interpreter: read, never changed. */
#include "bytecode_frames.h"
#include <stdlib.h>

/* Include/internal/pycore_frame.h, cpython/pystate.h and cpython/code.h of each version; checked at the start. */
typedef struct {
    int version;
    uint16_t state_frames; /* in the thread's state: the frame, or what begins with it */
    bool indirect;
    uint16_t instructions; /* in code objects */
} FrameLayout;
static const FrameLayout layouts[] = {{312, 56, true, 192}, {313, 72, false, 200}};
enum { OBJECT_FRAME = 24 }; /* where a frame object has the frame proper */

struct Frame {
    Object *code;
    const Frame *before;
    Object *parts[5];
    const char *instruction;
};

static const FrameLayout *layout;
static Live *live;
static uint32_t live_size, live_count;

static const Frame *state_frame(const char *state) {
    const void *place = state + layout->state_frames;
    if (layout->indirect) {
        place = *(const void *const *)place;
    }
    return *(const Frame *const *)place;
}

const Frame *frame_running(void) {
    return state_frame(api.thread_state());
}

uint32_t frame_at(const Frame *frame) {
    return (uint32_t)((frame->instruction - ((const char *)frame->code + layout->instructions)) >> 1);
}

const Frame *frame_before(const Frame *frame) {
    return frame->before;
}

const Frame *frame_live(const Frame *frame) {
    while (frame != NULL && live_find(frame) == NULL) {
        frame = frame->before;
    }
    return frame;
}

ThreadMark thread_mark(void) {
    void *state = api.thread_state();
    return (ThreadMark){state, api.PyThreadState_GetID(state)};
}

const Frame *frame_of_thread(ThreadMark thread) {
    void *interpreter = api.PyThreadState_GetInterpreter(api.thread_state());
    for (void *state = api.PyInterpreterState_ThreadHead(interpreter); state != NULL;
         state = api.PyThreadState_Next(state)) {
        if (state == thread.state && api.PyThreadState_GetID(state) == thread.id) {
            return state_frame(state);
        }
    }
    return NULL;
}

static uint32_t place_of(const Frame *frame) {
    return (uint32_t)(((uintptr_t)frame >> 3) * 0x9E3779B97F4A7C15u >> 32) & (live_size - 1);
}

Live *live_find(const Frame *frame) {
    for (uint32_t at = place_of(frame); live[at].frame != NULL; at = (at + 1) & (live_size - 1)) {
        if (live[at].frame == frame) {
            return &live[at];
        }
    }
    return NULL;
}

static Live *insert(const Frame *frame) {
    uint32_t at = place_of(frame);
    while (live[at].frame != NULL) {
        at = (at + 1) & (live_size - 1);
    }
    live[at] = (Live){.frame = frame};
    return &live[at];
}

static bool resize(uint32_t size) {
    Live *old = live, *fresh = calloc(size, sizeof *live);
    uint32_t old_size = live_size;
    if (fresh == NULL) {
        return false;
    }
    live = fresh;
    live_size = size;
    for (uint32_t i = 0; i < old_size; i++) {
        if (old[i].frame != NULL) {
            *insert(old[i].frame) = old[i];
        }
    }
    free(old);
    return true;
}

Live *live_add(const Frame *frame) {
    if (live_count * 2 >= live_size && !resize(live_size * 2)) {
        return NULL;
    }
    live_count++;
    return insert(frame);
}

void live_remove(Live *removed) {
    uint32_t hole = (uint32_t)(removed - live);
    for (uint32_t at = (hole + 1) & (live_size - 1); live[at].frame != NULL; at = (at + 1) & (live_size - 1)) {
        if (((at - place_of(live[at].frame)) & (live_size - 1)) >= ((at - hole) & (live_size - 1))) {
            live[hole] = live[at];
            hole = at;
        }
    }
    live[hole].frame = NULL;
    live_count--;
}

bool frames_open(Object *object) {
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (layouts[i].version == choice.version) {
            layout = &layouts[i];
        }
    }
    if (layout == NULL || api.thread_state == NULL || api.PyThreadState_GetID == NULL ||
        api.PyThreadState_GetInterpreter == NULL) {
        return false;
    }
    const Frame *frame = *(const Frame **)((char *)object + OBJECT_FRAME);
    Object *code = api.PyObject_GetAttrString(object, "f_code");
    bool right = frame == frame_running() && frame->code == code &&
                 (long)frame_at(frame) * 2 == api_integer(object, "f_lasti", -1);
    if (code != NULL) {
        api.Py_DecRef(code);
    }
    return right && resize(256);
}

enum { STORE_FAST = 125, FIRST_INSTRUMENTED = 237 }; /* CPython 3.12: Include/opcode.h */

void frames_split_pairs(Object *code) {
    if (choice.version != 312) {
        return;
    }
    Object *original = api.PyObject_GetAttrString(code, "co_code");
    if (original == NULL) {
        api.PyErr_Clear();
        return;
    }
    const uint8_t *compiled = (const uint8_t *)api.PyBytes_AsString(original);
    uint8_t *executed = (uint8_t *)code + layout->instructions;
    for (intptr_t at = 0; at + 2 < api.PyBytes_Size(original); at += 2) {
        if (compiled[at] == STORE_FAST && compiled[at + 2] == STORE_FAST && executed[at] < FIRST_INSTRUMENTED) {
            executed[at] = STORE_FAST;
        }
    }
    api.Py_DecRef(original);
}

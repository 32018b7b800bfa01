/* What is done at every call, and nothing else: find the function's id where it was found the last time, write an
 * event. */
#ifndef CALLSCOPE_PYTHON_RECORD_H
#define CALLSCOPE_PYTHON_RECORD_H

#include "callscope/records.h"
#include "interpreter.h"

#define CS_RARELY(condition) __builtin_expect(condition, 0)
#define CS_RARE __attribute__((noinline, cold)) /* a function whose calls must cost its caller nothing before them */

/* Who was met last: each lies where its address says. Codes leave when they are freed; methods are never freed. */
struct known {
    const void *what;  /* a code, or a method */
    uint32_t function; /* its id */
    uint32_t session;  /* in which it has that id */
};

enum { KNOWN = 4096 };

extern struct known cs_python_codes[KNOWN] CS_HIDDEN, cs_python_natives[KNOWN] CS_HIDDEN;

static inline uint64_t cs_python_place(const void *what) {
    return ((uintptr_t)what >> 4) % KNOWN;
}

/* Words from an object's start to its PyMethodDef. */
enum { BUILTIN_METHOD = 2, DESCRIPTOR_METHOD = 5 };

static inline bool cs_python_is_stopped(void) {
    return CS_RARELY(__atomic_load_n(cs_agent.stopped_at, __ATOMIC_RELAXED));
}

static inline bool cs_python_is_builtin(const object *callable) {
    return callable->type == cs_python.builtin_type || callable->type == cs_python.builtin_method_type;
}

/* A flight recorder's memory has left the caches when it is used again, and is wiped a step ahead
 * (agent/core/events.c). */
enum { FETCH_AHEAD = 0x4400 };

/* Write an event; false where the agent has to do it. */
static inline bool cs_python_write(uint32_t type) {
    struct callscope_room *room;
    uint64_t at = 16;
    uint32_t time, epoch, sp;
    if (CS_RARELY(!cs_agent.room_at))
        return false;
    __asm__ volatile("mov %%fs:(%1), %0" : "=r"(room) : "r"(cs_agent.room_at));
    __asm__ volatile("xadd %0, %1" : "+r"(at), "+m"(room->cursor) : : "memory", "cc");
    __asm__ volatile("rdtsc" : "=a"(time), "=d"(epoch));
    if (CS_RARELY(at >= room->end || epoch != room->epoch))
        return false;
    uint32_t *slot = (uint32_t *)at;
    __builtin_prefetch((const uint8_t *)at + FETCH_AHEAD, 1);
    __atomic_store_n(&slot[1], CALLSCOPE_SCRIPT_WORD, __ATOMIC_RELEASE);
    __asm__("mov %%esp, %0" : "=r"(sp));
    slot[2] = time;
    slot[3] = sp & ~7u;
    __atomic_store_n(&slot[0], type, __ATOMIC_RELEASE);
    return true;
}

/* Record that a code's (method's) function begins or, with the bits of SCRIPT_EXIT or SCRIPT_UNWOUND, ends. False where
 * that takes more: then it is as if nothing had been done. `is_left_out`: the answer for one that is not recorded. */
static inline bool cs_python_record(const struct known *table, const void *what, uint32_t type, bool is_left_out) {
    const struct known *known = &table[cs_python_place(what)];
    if (CS_RARELY(known->what != what))
        return false;
    return CS_RARELY(!known->function) ? is_left_out : cs_python_write(known->function | type);
}

#endif

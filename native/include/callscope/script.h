/* Between the agent and a recorder inside of an interpreter. The agent's side links to nothing and may be called from
 * any thread and signal handler; a recorder looks these functions up, and does nothing where they are not. */
#ifndef CALLSCOPE_SCRIPT_H
#define CALLSCOPE_SCRIPT_H

#include <stdbool.h>
#include <stdint.h>

#define CALLSCOPE_SCRIPT __attribute__((visibility("default"), used))

/* Whether calls of this process are recorded at all. */
CALLSCOPE_SCRIPT bool callscope_script_wanted(void);

struct callscope_script {
    uint32_t kind;                    /* SCRIPT_CODE or SCRIPT_NATIVE */
    uint32_t line;                    /* of its definition, or 0 */
    uint64_t address;                 /* a native one's code, or 0 */
    const char *name, *file, *module; /* "" where there is none */
};

/* Tell of a function. Its id in this session; 0 when there is no room. */
CALLSCOPE_SCRIPT uint32_t callscope_script_function(const struct callscope_script *script);

/* The function with that id begins (is resumed), or ends (yields) in the calling thread. */
CALLSCOPE_SCRIPT void callscope_script_enter(uint32_t function);
CALLSCOPE_SCRIPT void callscope_script_leave(uint32_t function, bool by_exception);

/* Where a thread's next event goes. A recorder that is called very often writes the 16 bytes of an event itself: it
 * adds 16 to `cursor`, in one instruction, and has a slot if what it was lies below `end`. It tells the agent instead
 * where that is not so, or the high half of the clock is not `epoch`; a slot left as it is says nothing. */
struct callscope_room {
    uint64_t cursor, end;
    uint32_t epoch;
};
enum { CALLSCOPE_SCRIPT_WORD = 2 << 3 | 5 }; /* second word of such an event: 2 x 8 bytes, EXTENDED */

/* How far from a thread's thread pointer the address of its room lies. 0: there is no clock to be read, or no such
 * place; the agent is to be told. */
CALLSCOPE_SCRIPT int64_t callscope_script_room(void);

/* Where a word lies that is not 0 once calls are not to be told of any more, because they cost too much. */
CALLSCOPE_SCRIPT const uint32_t *callscope_script_stopped(void);

/* The calling thread leaves one of the interpreter's own stacks for another: greenlets, which share addresses. */
CALLSCOPE_SCRIPT void callscope_script_switch(uint32_t origin, uint32_t target);

/* Begin and end a session of this process's own, in a trace directory made for it, while nothing is recorded. False
 * when the process is recorded already, or the directory is none. */
CALLSCOPE_SCRIPT bool callscope_session_begin(const char *directory);
CALLSCOPE_SCRIPT void callscope_session_end(void);

/* What the recorder itself makes the interpreter do is not to be recorded. Pairs may nest. */
CALLSCOPE_SCRIPT void callscope_script_mute(bool muted);

#endif

/* Beginning and ending while the program runs, asked for from outside (recording/attach_python.py). The thread that
 * asks is a borrowed one, which may hold the interpreter's lock: one of our own waits for that as others do, and acts.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "interpreter.h"

#define CALLSCOPE_EXPORT __attribute__((visibility("default"), used))

enum { IDLE, WAITS, RUNS, REFUSED };

/* How things are; WAITS: a thread of ours is at work, or waits for the lock. */
CALLSCOPE_EXPORT uint32_t callscope_python_state;

/* The rules of the session to come, as in CALLSCOPE_PYTHON_RULES. */
CALLSCOPE_EXPORT char callscope_python_rules[1 << 16];

static void set_state(uint32_t state) {
    __atomic_store_n(&callscope_python_state, state, __ATOMIC_RELEASE);
}

/* Do something with the interpreter's lock, unrecorded. False where there is no interpreter. */
static bool locked(bool (*act)(void)) {
    int (*take)(void);
    void (*give)(int);
    *(void **)&take = dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    *(void **)&give = dlsym(RTLD_DEFAULT, "PyGILState_Release");
    if (!take || !give || !cs_python.Py_IsInitialized())
        return false;
    cs_agent.mute(true);
    int before = take();
    bool is_done = act();
    give(before);
    cs_agent.mute(false);
    return is_done;
}

static bool begin(void) {
    cs_python_choose(callscope_python_rules);
    return callscope_python_start(NULL);
}

static bool end(void) {
    callscope_python_stop();
    return true;
}

static void *begin_thread(void *unused) {
    set_state(cs_python_find() && locked(begin) ? RUNS : REFUSED);
    return unused;
}

static void *end_thread(void *unused) {
    locked(end);
    set_state(IDLE);
    return unused;
}

/* By names looked up: before glibc 2.34 they are in a library that not every program with this one has. */
static void start_thread(void *(*thread)(void *), uint32_t otherwise) {
    pthread_t started;
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    int (*detach)(pthread_t);
    *(void **)&create = dlsym(RTLD_DEFAULT, "pthread_create");
    *(void **)&detach = dlsym(RTLD_DEFAULT, "pthread_detach");
    set_state(WAITS);
    if (!create || !detach || create(&started, NULL, thread, NULL))
        set_state(otherwise);
    else
        detach(started);
}

/* Record from now on, in the session that has been begun. */
CALLSCOPE_EXPORT void callscope_python_attach(void) {
    start_thread(begin_thread, REFUSED);
}

CALLSCOPE_EXPORT void callscope_python_detach(void) {
    cs_agent.mute(true); /* the C library may be recorded */
    start_thread(end_thread, RUNS);
    cs_agent.mute(false);
}

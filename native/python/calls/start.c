/* The recorder of Python calls: preloaded beside the agent, it waits until the interpreter is about to run a program;
 * or a program loads both, and starts and stops them. Nothing is added that the program could see: no module, no path,
 * no variable. */
#include <string.h>

#include "interpreter.h"

#define CALLSCOPE_EXPORT __attribute__((visibility("default"), used))

static bool start(void) {
    bool is_started = false;
    if (!cs_python_check())
        return false;
    cs_agent.mute(true);
    is_started = cs_python.minor >= 12 ? cs_python_monitor() : cs_python_profile();
    cs_python.PyErr_Clear();
    cs_agent.mute(false);
    return is_started;
}

static void start_program(void) {
    start();
}

CALLSCOPE_EXPORT bool callscope_python_start(const char *own_files) {
    if (!cs_python_find())
        return false;
    cs_python_forget_all(own_files);
    return start();
}

CALLSCOPE_EXPORT void callscope_python_stop(void) {
    if (cs_python.minor >= 12)
        cs_python_stop_monitor();
    else
        cs_python_stop_profile();
    cs_python.PyErr_Clear();
}

__attribute__((constructor)) static void begin(void) {
    if (cs_python_find())
        cs_python_await(start_program);
}

/* The recorder of Python calls: preloaded beside the agent, it waits until the interpreter is about to run a program.
 * Nothing is added that the program could see: no module, no path, no variable. */
#include "interpreter.h"

static void start(void) {
    if (!cs_python_check())
        return;
    cs_agent.mute(true);
    if (cs_python.minor >= 12)
        cs_python_monitor();
    else
        cs_python_profile();
    cs_python.PyErr_Clear();
    cs_agent.mute(false);
}

__attribute__((constructor)) static void begin(void) {
    if (cs_python_find())
        cs_python_await(start);
}

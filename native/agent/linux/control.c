/* A thread of the agent that waits for the recorder's word, in sessions with FEATURE_SWITCHED.
 *
 * It uses nothing while it waits. Like the sampler's it shares everything with the program but a stack, and has no
 * thread-local data of its own. */
#include <linux/futex.h>

#include "../core/agent.h"
#include "../core/system.h"
#include "linux.h"
#include "syscall.h"

static __attribute__((noreturn)) void obey(void) {
    const struct cs_control *control = cs_control();
    for (;;) {
        uint32_t asked = __atomic_load_n(&control->asked, __ATOMIC_ACQUIRE);
        cs_switch(__atomic_load_n(&control->off, __ATOMIC_ACQUIRE));
        cs_call6(SYS_futex, (long)&control->asked, FUTEX_WAIT, asked, 0, 0, 0);
    }
}

void cs_control_begin(void) {
    static uint8_t *stack; /* a child of fork has its own copy, on which nobody is */
    uint32_t *running = &cs_session.process->control;
    if (!(cs_session.features & CS_FEATURE_SWITCHED) || __atomic_exchange_n(running, 1, __ATOMIC_ACQUIRE))
        return;
    cs_helper_begin(&stack, obey);
}

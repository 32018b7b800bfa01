/* A thread of the agent that waits for the recorder's word, in sessions with FEATURE_SWITCHED.
 *
 * It uses nothing while it waits. Like the sampler's it shares everything with the program but a stack, and has no
 * thread-local data of its own. */
#include <linux/futex.h>

#include "../core/agent.h"
#include "../core/system.h"
#include "linux.h"
#include "syscall.h"

/* Functions that the recorder has found too expensive, from the first on that this process has not muted. */
static void mute(const struct cs_control *control) {
    const uint32_t *words = (const uint32_t *)((const uint8_t *)cs_session.events + CS_EVENTS_MUTES);
    struct cs_process *process = cs_session.process;
    uint32_t count = __atomic_load_n(&control->mutes, __ATOMIC_ACQUIRE);
    if (count > CS_MOST_MUTES || process->mutes_done >= count)
        return;
    cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    cs_lock(&process->module_lock);
    while (process->mutes_done < count) {
        uint32_t word = words[process->mutes_done++];
        struct cs_mute record = {word & ~CS_MUTE_RESTORE, word & CS_MUTE_RESTORE ? 1 : 0};
        struct cs_part part = {&record, sizeof record};
        if (record.function == CS_SCRIPT_FIRST)
            cs_script_stop();
        else if (!cs_regions_mute(record.function, record.restored))
            continue;
        cs_journal_write(CS_JOURNAL_MUTE, cs_tsc(), NULL, &part, 1);
    }
    cs_regions_settle_mutes();
    cs_unlock(&process->module_lock);
}

static __attribute__((noreturn)) void obey(void) {
    const struct cs_control *control = cs_control();
    for (;;) {
        uint32_t asked = __atomic_load_n(&control->asked, __ATOMIC_ACQUIRE);
        cs_switch(__atomic_load_n(&control->off, __ATOMIC_ACQUIRE));
        mute(control);
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

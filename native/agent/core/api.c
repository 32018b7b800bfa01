/* callscope.h, as far as it is the same on all systems. Without the header's macros, which call these only where they
 * are. */
#include "api.h"

#include "memory.h"
#include "modules.h"
#include "system.h"

#define LONGEST_MARKER 4000u

void cs_stop_for_good(void) {
    struct cs_process *process = cs_session.process;
    if (__atomic_exchange_n(&process->module_lock, 1, __ATOMIC_ACQUIRE))
        return;
    cs_regions_switch(true);
    cs_unlock(&process->module_lock);
}

static void switch_all(bool off) {
    if (!cs_session.events || (!off && cs_session.events->stopped))
        return;
    uint64_t signals = cs_system_block_signals();
    cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    cs_lock(&cs_session.process->module_lock);
    cs_regions_switch(off);
    cs_unlock(&cs_session.process->module_lock);
    cs_system_restore_signals(signals);
}

CS_API void callscope_stop(void) {
    switch_all(true);
}

CS_API void callscope_start(void) {
    switch_all(false);
}

CS_API void callscope_pause(void) {
    if (cs_session.events)
        cs_pause();
}

CS_API void callscope_resume(void) {
    if (cs_session.events)
        cs_resume();
}

CS_API void callscope_marker(const char *text) {
    char copy[LONGEST_MARKER + 1];
    uint64_t bytes = 0;
    if (!cs_session.events || !text)
        return;
    for (; bytes < LONGEST_MARKER && text[bytes]; bytes++)
        copy[bytes] = text[bytes];
    copy[bytes] = 0;
    uint64_t signals = cs_system_block_signals();
    cs_journal_text(CS_JOURNAL_MARKER, cs_thread_block(), 0, copy);
    cs_system_restore_signals(signals);
}

/* callscope.h, as far as it is more than one of the agent's own functions. Without the header's macros, which call
 * these only where they are. */
#include <linux/prctl.h>

#include "../core/memory.h"
#include "../core/system.h"
#include "interpose.h"
#include "linux.h"
#include "syscall.h"

#define LONGEST_MARKER 4000u

extern int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);

static void switch_all(bool off) {
    if (!cs_session.events)
        return;
    uint64_t signals = cs_system_block_signals();
    cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    cs_lock(&cs_session.process->module_lock);
    cs_regions_switch(off);
    cs_unlock(&cs_session.process->module_lock);
    cs_system_restore_signals(signals);
}

CS_INTERPOSE void callscope_stop(void) {
    switch_all(true);
}

CS_INTERPOSE void callscope_start(void) {
    switch_all(false);
}

CS_INTERPOSE void callscope_pause(void) {
    if (cs_session.events)
        cs_pause();
}

CS_INTERPOSE void callscope_resume(void) {
    if (cs_session.events)
        cs_resume();
}

CS_INTERPOSE void callscope_marker(const char *text) {
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

CS_INTERPOSE void callscope_thread_name(const char *name) {
    if (cs_session.events && name)
        prctl(PR_SET_NAME, (unsigned long)name, 0, 0, 0);
}

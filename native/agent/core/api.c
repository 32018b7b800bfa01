/* callscope.h, as far as it is the same on all systems. Without the header's macros, which call these only where they
 * are. */
#include "api.h"

#include "memory.h"
#include "modules.h"
#include "system.h"

#define LONGEST_MARKER 4000u

CS_API void callscope_stop(void) {
    cs_switch(true);
}

CS_API void callscope_start(void) {
    cs_switch(false);
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

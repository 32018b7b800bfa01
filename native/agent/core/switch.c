/* Recording goes off and on in the whole process, while its threads run.
 *
 * The journal has the time before the first gate closes, and the time when all are open again and no processor executes
 * what it fetched before. Readers drop what was recorded between the two: some gates were open, others were not. */
#include "api.h"
#include "modules.h"
#include "system.h"

static bool is_off;

static void journal(bool off) {
    struct cs_switch record = {.on = !off};
    struct cs_part part = {&record, sizeof record};
    uint64_t now = cs_tsc();
    cs_journal_write(CS_JOURNAL_SWITCH, now, NULL, &part, 1);
}

void cs_switch(bool off) {
    if (!cs_session.events || (!off && cs_session.events->stopped))
        return;
    uint64_t signals = cs_system_block_signals();
    cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    cs_lock(&cs_session.process->module_lock);
    if (off != is_off) {
        is_off = off;
        if (off)
            journal(true);
        cs_regions_switch(off);
        cs_system_sync_cores();
        if (!off)
            journal(false);
    }
    cs_unlock(&cs_session.process->module_lock);
    cs_system_restore_signals(signals);
}

void cs_switch_begin(void) {
    const struct cs_control *control = cs_control();
    bool off = cs_session.features & CS_FEATURE_SWITCHED && __atomic_load_n(&control->off, __ATOMIC_ACQUIRE);
    cs_regions_switch(off);
    is_off = off;
    if (off)
        journal(true);
}

void cs_stop_for_good(void) {
    struct cs_process *process = cs_session.process;
    if (__atomic_exchange_n(&process->module_lock, 1, __ATOMIC_ACQUIRE))
        return;
    is_off = true;
    cs_regions_switch(true);
    cs_unlock(&process->module_lock);
}

bool cs_switched_off(void) {
    return __atomic_load_n(&is_off, __ATOMIC_RELAXED);
}

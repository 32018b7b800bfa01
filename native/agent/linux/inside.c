/* Sessions that a program begins and ends itself, one after the other, with the agent as one of its libraries.
 *
 * Called while nothing records: by a recorder inside of an interpreter, which holds the interpreter's lock. */
#include "../core/memory.h"
#include "../core/system.h"
#include "callscope/script.h"
#include "linux.h"
#include "syscall.h"

bool callscope_session_begin(const char *directory) {
    if (cs_session.events || !directory || directory[0] != '/')
        return false;
    /* The blocks of earlier sessions are still in other threads' hands: the next ones lie behind them. */
    struct cs_process *process = cs_session.process;
    struct cs_block *blocks = cs_session.blocks;
    uint32_t limit = cs_session.block_limit, highest = cs_session.highest_block;
    memset(&cs_session, 0, sizeof cs_session);
    cs_session.process = process;
    cs_session.blocks = blocks;
    cs_session.block_limit = limit;
    cs_session.highest_block = highest;
    if (process)
        memset(process, 0, sizeof *process);
    memset(cs_modules, 0, cs_module_count * sizeof *cs_modules);
    cs_module_count = 0;
    return cs_start(directory, 0, NULL);
}

void callscope_session_end(void) {
    if (!cs_session.events || cs_session.process->pid != cs_system_pid())
        return;
    uint64_t signals = cs_system_block_signals();
    cs_threads_close();
    cs_journal_write(CS_JOURNAL_PROCESS_END, cs_tsc(), NULL, NULL, 0);
    cs_journal_forget(cs_session.process->pid);
    cs_session.events = NULL;
    cs_unmap(cs_session.events_file.base, cs_session.events_file.bytes);
    cs_unmap(cs_session.journal_file.base, cs_session.journal_file.bytes);
    cs_system_restore_signals(signals);
}

/* Who handles a fatal signal. The kernel is told cs_signal_entry for each of them that is not ignored; what the program
 * asked for is kept here and goes on from there, so that the program sees, and gets, what it would have without us.
 *
 * Handlers with SA_ONSTACK lose that flag in the kernel until the program sets an alternate stack: in its eyes there is
 * none before, and the agent's own (stacks.c) must not be taken for it. */
#include "../core/agent.h"
#include "../core/memory.h"
#include "../core/system.h"
#include "crash.h"
#include "interpose.h"
#include "linux.h"
#include "syscall.h"

#define SIGNALS 65

/* What the program asked for, by signal. `taken`: the kernel has cs_signal_entry. */
static struct {
    void *handler;
    uint64_t flags;
    bool taken;
} wishes[SIGNALS];
static uint64_t without_stack; /* signals, by bit, whose SA_ONSTACK the kernel does not have */
static bool started;

bool cs_signal_is_fatal(int signal) {
    return signal == SIGSEGV || signal == SIGABRT || signal == SIGILL || signal == SIGFPE || signal == SIGBUS ||
           signal == SIGTRAP || signal == SIGSYS;
}

/* The program's wish goes on from here: fatal signals, and the one at which a flight recorder is dumped. */
static bool is_ours(int signal) {
    return cs_signal_is_fatal(signal) || (cs_session.events && (uint32_t)signal == cs_session.events->dump_signal);
}

static bool is_function(const void *handler) {
    return handler != (void *)SIG_DFL && handler != (void *)SIG_IGN;
}

bool cs_action_get(int signal, struct cs_action *action) {
    return !cs_failed(cs_call4(SYS_rt_sigaction, signal, 0, (long)action, sizeof action->mask));
}

bool cs_action_set(int signal, const struct cs_action *action) {
    return !cs_failed(cs_call4(SYS_rt_sigaction, signal, (long)action, 0, sizeof action->mask));
}

static void note_without_stack(int signal, bool without) {
    uint64_t bit = 1ull << (signal - 1);
    if (without)
        __atomic_fetch_or(&without_stack, bit, __ATOMIC_RELAXED);
    else
        __atomic_fetch_and(&without_stack, ~bit, __ATOMIC_RELAXED);
}

/* Have the kernel call cs_signal_entry for the signal, whose action is `action` now. */
static void take(int signal, struct cs_action action) {
    wishes[signal].flags = action.flags;
    __atomic_store_n(&wishes[signal].handler, action.handler, __ATOMIC_RELEASE);
    wishes[signal].taken = true;
    bool keep_stack = is_function(action.handler) ? action.flags & SA_ONSTACK && cs_stack_of_program() : true;
    if (!is_function(action.handler))
        action.flags &= ~(uint64_t)SA_NODEFER; /* the signal is sent again, to arrive when this handler is done */
    action.flags &= ~(uint64_t)(SA_RESETHAND | SA_ONSTACK);
    action.flags |= SA_SIGINFO | CS_SA_RESTORER | (keep_stack ? SA_ONSTACK : 0);
    if (!cs_signal_is_fatal(signal) && !is_function(wishes[signal].handler))
        action.flags |= SA_RESTART; /* the program is not to notice */
    if (!action.restorer)
        action.restorer = (void *)cs_signal_return;
    action.handler = (void *)cs_signal_entry;
    cs_action_set(signal, &action);
}

/* The program has, or may have, changed the signal's action: take it again. */
static void settle(int signal) {
    struct cs_action action;
    if (!started || signal < 1 || signal >= SIGNALS || !cs_action_get(signal, &action) ||
        action.handler == (void *)cs_signal_entry)
        return;
    if (is_ours(signal)) {
        wishes[signal].taken = false;
        if (action.handler != (void *)SIG_IGN || !cs_signal_is_fatal(signal))
            take(signal, action);
        return;
    }
    bool strip = is_function(action.handler) && action.flags & SA_ONSTACK && !cs_stack_of_program();
    note_without_stack(signal, strip);
    if (strip) {
        action.flags &= ~(uint64_t)SA_ONSTACK;
        cs_action_set(signal, &action);
    }
}

void cs_signals_use_stacks(void) {
    struct cs_action action;
    for (int signal = 1; signal < SIGNALS; signal++) {
        bool wished = wishes[signal].taken && is_function(wishes[signal].handler) && wishes[signal].flags & SA_ONSTACK;
        if (!wished && !(without_stack >> (signal - 1) & 1))
            continue;
        note_without_stack(signal, false);
        if (!cs_action_get(signal, &action) || !is_function(action.handler))
            continue;
        action.flags |= SA_ONSTACK;
        cs_action_set(signal, &action);
    }
}

void cs_signals_start(void) {
    struct cs_action action;
    started = true;
    for (int signal = 1; signal < SIGNALS; signal++)
        if (is_ours(signal) && cs_action_get(signal, &action) &&
            (action.handler == (void *)SIG_DFL || !cs_signal_is_fatal(signal)))
            take(signal, action);
}

/* Let the signal do what it does by default once the handler is done: the thread then has its registers back. */
static void die(int signal, const siginfo_t *info) {
    cs_dropin_finish();
    struct cs_action action = {.handler = (void *)SIG_DFL};
    cs_action_set(signal, &action);
    uint32_t pid = cs_system_pid(), tid = cs_system_tid();
    if (cs_failed(cs_call4(SYS_rt_tgsigqueueinfo, pid, tid, signal, (long)info)))
        cs_call3(SYS_tgkill, pid, tid, signal);
}

static void reset(int signal) {
    struct cs_action action;
    if (!cs_action_get(signal, &action))
        return;
    action.handler = (void *)SIG_DFL;
    action.flags = wishes[signal].flags & (SA_RESTART | SA_NOCLDSTOP | SA_NOCLDWAIT);
    take(signal, action);
}

struct cs_arrival cs_signal_arrived(int signal, siginfo_t *info, ucontext_t *context) {
    struct cs_arrival arrival = {__atomic_load_n(&wishes[signal].handler, __ATOMIC_ACQUIRE), NULL};
    if (signal == SIGBUS && info->si_code > 0 && cs_files_mend((uint64_t)info->si_addr))
        return (struct cs_arrival){0};
    if (!cs_signal_is_fatal(signal)) {
        if (!cs_process_ignored())
            cs_journal_write(CS_JOURNAL_DUMP, cs_tsc(), cs_self()->block->used ? cs_self()->block : NULL, NULL, 0);
        if (!is_function(arrival.handler))
            return (struct cs_arrival){0};
    }
    if (!is_function(arrival.handler)) {
        cs_crash_record(info, context, 0);
        die(signal, info);
        return (struct cs_arrival){0};
    }
    if (!cs_stack_leave(context, &arrival.frame)) {
        cs_crash_record(info, context, 0);
        die(SIGSEGV, info); /* as the kernel does when it cannot call a handler */
        return (struct cs_arrival){0};
    }
    if (cs_signal_is_fatal(signal) && (info->si_code > 0 || (uint32_t)info->si_pid == cs_system_pid()))
        cs_crash_handled(info, context);
    if (wishes[signal].flags & SA_RESETHAND)
        reset(signal);
    return arrival;
}

/* ---- The C library's functions */

/* A child of vfork has actions of its own, but shares this memory. */
static bool is_guest(void) {
    return !started || (__atomic_load_n(&cs_session.process->state, __ATOMIC_RELAXED) == 2 &&
                        cs_session.process->pid != cs_system_pid());
}

/* What the program believes to be the action, where `old` says what the C library found. */
static void show(int signal, struct sigaction *old, void *wish, uint64_t flags) {
    if (old->sa_sigaction == cs_signal_entry) {
        const uint64_t ours = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESETHAND;
        memcpy(&old->sa_sigaction, &wish, sizeof wish);
        old->sa_flags = (int)(((uint64_t)old->sa_flags & ~ours) | (flags & ours));
    } else if (without_stack >> (signal - 1) & 1)
        old->sa_flags |= SA_ONSTACK;
}

static int change_action(int signal, const struct sigaction *action, struct sigaction *old) {
    int (*real)(int, const struct sigaction *, struct sigaction *) = cs_next(CS_NEXT_SIGACTION);
    if (!real)
        return -1;
    if (!started || signal < 1 || signal >= SIGNALS)
        return real(signal, action, old);
    void *wish = wishes[signal].handler;
    uint64_t flags = wishes[signal].flags;
    struct sigaction before, given;
    if (action) {
        given = *action;
        action = &given;
    }
    int result = real(signal, action, &before);
    if (result)
        return result;
    show(signal, &before, wish, flags);
    bool on_stack = action && action->sa_flags & SA_ONSTACK;
    if (action && (is_ours(signal) || on_stack || without_stack >> (signal - 1) & 1) && !is_guest())
        settle(signal);
    if (old)
        *old = before;
    return result;
}

static void *change_handler(enum cs_next function, int signal, void *handler) {
    void *(*real)(int, void *) = cs_next(function);
    if (!real)
        return (void *)SIG_ERR;
    void *wish = started && signal > 0 && signal < SIGNALS ? wishes[signal].handler : NULL;
    void *before = real(signal, handler);
    if (before == (void *)SIG_ERR || is_guest())
        return before == (void *)cs_signal_entry ? wish : before;
    if (is_ours(signal) || without_stack >> (signal - 1) % 64 & 1)
        settle(signal);
    return before == (void *)cs_signal_entry ? wish : before;
}

CS_INTERPOSE int sigaction(int signal, const struct sigaction *restrict action, struct sigaction *restrict old) {
    return change_action(signal, action, old);
}

CS_INTERPOSE int __sigaction(int signal, const struct sigaction *action, struct sigaction *old) {
    return change_action(signal, action, old);
}

typedef void (*handler_type)(int);

CS_INTERPOSE handler_type signal(int number, handler_type handler) {
    return (handler_type)change_handler(CS_NEXT_SIGNAL, number, (void *)handler);
}

CS_INTERPOSE handler_type bsd_signal(int number, handler_type handler) {
    return (handler_type)change_handler(CS_NEXT_SIGNAL, number, (void *)handler);
}

CS_INTERPOSE handler_type ssignal(int number, handler_type handler) {
    return (handler_type)change_handler(CS_NEXT_SIGNAL, number, (void *)handler);
}

CS_INTERPOSE handler_type sysv_signal(int number, handler_type handler) {
    return (handler_type)change_handler(CS_NEXT_SYSV_SIGNAL, number, (void *)handler);
}

CS_INTERPOSE handler_type __sysv_signal(int number, handler_type handler) {
    return (handler_type)change_handler(CS_NEXT_SYSV_SIGNAL, number, (void *)handler);
}

CS_INTERPOSE handler_type sigset(int number, handler_type handler) {
    return (handler_type)change_handler(CS_NEXT_SIGSET, number, (void *)handler);
}

static _Noreturn void leave(int status, uint64_t sp) {
    void (*real)(int) = cs_next(CS_NEXT_EXIT);
    cs_crash_at_exit(sp);
    cs_dropin_finish();
    if (real)
        real(status);
    for (;;)
        cs_call3(SYS_exit_group, status, 0, 0);
}

CS_INTERPOSE _Noreturn void _exit(int status) {
    leave(status, (uint64_t)__builtin_frame_address(0));
}

CS_INTERPOSE _Noreturn void _Exit(int status) {
    leave(status, (uint64_t)__builtin_frame_address(0));
}

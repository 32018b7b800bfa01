/* Fatal signals: how the agent comes to see them, and what it writes down. */
#ifndef CALLSCOPE_AGENT_CRASH_H
#define CALLSCOPE_AGENT_CRASH_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <ucontext.h>

/* The kernel's own struct sigaction, which is not the C library's (arch/x86/include/uapi/asm/signal.h). */
struct cs_action {
    void *handler;
    uint64_t flags;
    void *restorer;
    uint64_t mask;
};

#define CS_SA_RESTORER 0x04000000u

/* The kernel's signal frame (struct rt_sigframe, arch/x86/include/asm/sigframe.h): what a handler finds at its stack
 * pointer. The registers in it are those of the interrupted thread, until the handler returns. */
struct cs_frame {
    uint64_t return_address;
    uint64_t flags, link;
    stack_t stack;
    struct sigcontext machine;
    uint64_t mask;
    siginfo_t info;
};

/* Its copy of the vector state ends, from SOFTWARE on, in facts about itself (struct _fpx_sw_bytes,
 * arch/x86/include/uapi/asm/sigcontext.h). */
#define CS_FXSAVE_BYTES 512u
#define CS_SOFTWARE_OFFSET 464u
#define CS_SOFTWARE_MAGIC 0x46505853u
struct cs_vector_facts {
    uint32_t magic, extended_bytes; /* extended_bytes: with the word behind the state that marks its end */
    uint64_t features;
    uint32_t bytes;
};

bool cs_action_get(int signal, struct cs_action *action);
bool cs_action_set(int signal, const struct cs_action *action);

/* ---- signals.c */
/* Stand in for the default action of every fatal signal. */
void cs_signals_start(void);
bool cs_signal_is_fatal(int signal);
/* The program has set an alternate stack: handlers may run on it now. */
void cs_signals_use_stacks(void);
/* How a signal goes on: with the program's handler, if any, and on another stack if `frame` is not NULL. */
struct cs_arrival {
    void *handler;
    struct cs_frame *frame;
};
/* From hooks.S, for a signal that arrived. */
struct cs_arrival cs_signal_arrived(int signal, siginfo_t *info, ucontext_t *context);

/* ---- crash.c */
/* Write a CRASH record about the calling thread. */
void cs_crash_record(const siginfo_t *info, const ucontext_t *context, uint32_t flags);
/* A fault for which a handler of the program is about to run. */
void cs_crash_handled(const siginfo_t *info, const ucontext_t *context);
/* The program is about to exit from `sp`: record the fault in whose handler it is, if it is in one. */
void cs_crash_at_exit(uint64_t sp);

/* ---- stacks.c */
/* Give the calling thread an alternate signal stack, unless it has one. */
void cs_stack_give(void);
/* Whether the program has set alternate stacks itself. */
bool cs_stack_of_program(void);
/* A signal's frame lies on the agent's stack, where the program has none: move it to where it would be without us.
 * False when there is no room for it, as in a stack overflow. `*frame` becomes NULL when it lies where it should. */
bool cs_stack_leave(ucontext_t *context, struct cs_frame **frame);

/* ---- hooks.S */
void cs_signal_entry(int signal, siginfo_t *info, void *context);
void cs_signal_return(void) __asm__("__restore_rt"); /* the name by which gdb knows what handlers return to */
void cs_thread_main(void);

#endif

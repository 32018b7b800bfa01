/* What the parts of the agent share: a thread's block, the state of the process, the files of the session.
 *
 * Memory comes in two sorts. Ordinary variables are copied by fork as everything else is. What must not be believed in
 * a child (cursors, locks, the process's number) lies in pages which the system hands to a child zeroed; a zeroed
 * block sends its thread to the slow path, which sees that this is a new process. So forks need no hook. */
#ifndef CALLSCOPE_AGENT_H
#define CALLSCOPE_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "callscope/records.h"

/* Where a thread's next event goes. The first three fields are read by the hot path (routines.inc). */
struct cs_block {
    uint64_t cursor;               /* address of the next event */
    uint64_t end;                  /* an event may start below this address */
    uint32_t epoch;                /* high half of the time-stamp counter, as the chunk knows it */
    uint32_t used;                 /* 1 while a thread owns the block; 0 in a child, which gets these pages zeroed */
    uint64_t limit;                /* the chunk (or sink) is backed by memory up to here */
    struct cs_chunk_header *chunk; /* NULL while events have no room and go to the sink */
    uint32_t owner;                /* what the chunk's flags say while it is this thread's */
    uint8_t *sink;                 /* memory for events that have no room, or NULL */
    uint64_t cell;                 /* where the records about the thread lie in the journal; 0: anywhere */
    uint32_t thread;
    uint32_t tid;
    void *lanes;     /* of the depth filter, to be freed with the block */
    uint64_t handle; /* what the program's thread library calls the thread; 0: unknown */
    char name[16];
    uint32_t timer;                 /* what the system calls the timer of its captures, + 1; 0: none */
    uint32_t asked;                 /* 1 until it has come to the capture that it was asked for */
    uint64_t due_ns;                /* its processor time at which the next one is due */
    uint64_t stack_low, stack_high; /* part of its stack that is known to be readable */
    void *last_stack;               /* struct cs_remembered, to be freed with the block */
    uint64_t thrown;                /* Windows: the _Unwind_Exception that it threw last, which may be gone */
    uint32_t stack_base;            /* where its last whole stack lies in the chunk, in 8 bytes; 0: there is none */
} __attribute__((aligned(128)));

/* The only thread-local data. */
struct cs_thread {
    struct cs_block *block; /* never NULL: cs_no_block before the first event */
    void *lanes;            /* depth filter: survives fork, because the calls that are open do */
    uint32_t muted;         /* the agent itself calls code that may be traced */
    uint32_t paused;        /* the program wants nothing recorded here */
    struct cs_block *kept;  /* the block to go back to afterwards */
    struct cs_block *left;  /* the same after a pause */
    uint64_t held;          /* the block is being changed: nobody else may touch it (Windows: signals do not come) */
};

/* Facts about this process; zeroed in a child. */
struct cs_process {
    uint32_t state; /* 0: not registered, 1: being registered, 2: registered */
    uint32_t process;
    uint32_t pid;
    uint32_t block_lock;
    uint32_t module_lock;
    uint32_t block_count; /* blocks given out so far */
    uint32_t first_block; /* blocks below belong to threads of ancestors: one of them is still ours in name */
    uint32_t next_check;  /* where the search for blocks of dead threads goes on */
    uint32_t mutes_done;  /* of the recorder's list */
    uint32_t control;     /* 1 while a thread of the agent obeys the recorder */
    uint32_t sampler;     /* 1 while a thread of the agent asks the others for their stacks */
};

/* A file of the session, mapped whole but opened for writing piece by piece: mlockall() would otherwise fill it. */
struct cs_shared_file {
    uint8_t *base;
    uint64_t bytes;
    uint64_t window;    /* bytes opened at a time */
    uint64_t opened[8]; /* bit map of windows */
};

/* The session as this process sees it. */
struct cs_session {
    struct cs_shared_file events_file;
    struct cs_shared_file journal_file;
    struct cs_events_header *events; /* NULL: this process is not recorded */
    struct cs_journal_header *journal;
    uint64_t chunk_bytes;
    uint64_t chunk_limit;   /* as the file has it */
    uint64_t chunks_mapped; /* fewer than chunk_limit when address space is limited */
    uint64_t features;
    uint64_t namespace_id; /* of process ids; 0: unknown */
    uint32_t max_depth;
    uint32_t filters;       /* FILTER_* */
    uint32_t sample;        /* of so many subtrees one is recorded; 0: all */
    bool asks;              /* the routines ask depth.c before they record */
    uint32_t last_process;  /* number of the process whose memory this is or was copied from */
    uint32_t highest_block; /* blocks given out here or in an ancestor */
    uint32_t notes_given;
    bool alone; /* children of this process are not recorded */
    bool torn;  /* a page of the session's files could not be had */
    struct cs_process *process;
    struct cs_block *blocks;
    uint32_t block_limit;
    char path[4096];
    char command[16384]; /* NUL-separated */
    uint32_t path_bytes, command_bytes;
};

extern struct cs_session cs_session;

/* The block of threads that have none yet: it has no room, so their first event takes the slow path. */
extern struct cs_block cs_no_block;

/* The calling thread's data. */
struct cs_thread *cs_self(void);

static inline uint64_t cs_tsc(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (uint64_t)high << 32;
}

/* The coarse clock: a word of the events file that the recorder moves on; NULL in sessions with another clock. */
extern uint64_t *cs_coarse_clock __attribute__((visibility("hidden")));
/* The time of an event now. */
static inline uint64_t cs_now(void) {
    return cs_coarse_clock ? __atomic_load_n(cs_coarse_clock, __ATOMIC_RELAXED) : cs_tsc();
}
/* Events from here on are no earlier than `tsc`: what the journal says of a time is before or behind them. */
void cs_clock_pass(uint64_t tsc);

/* Short locks, held with signals blocked. They lie in pages zeroed on fork, so a child finds them free. */
void cs_lock(uint32_t *lock);
void cs_unlock(uint32_t *lock);

/* ---- session.c */
/* Take over the mapped files. False when they are not what this agent writes. */
bool cs_session_open(uint8_t *events, uint64_t events_mapped, uint8_t *journal, uint64_t journal_bytes);
/* Make [offset, offset + bytes) of the file writable and backed. */
bool cs_file_commit(struct cs_shared_file *file, uint64_t offset, uint64_t bytes);

/* ---- events.c */
/* Room for at least one more event behind block->cursor: the next part of the chunk, a new chunk, or the sink. */
void cs_events_advance(struct cs_block *block, uint64_t sp);
/* Close the block's chunk and settle what went to its sink. */
void cs_events_close(struct cs_block *block);
/* Count the events in a block's sink as lost, and empty it. */
void cs_events_settle(struct cs_block *block);
void cs_events_release_sink(struct cs_block *block);
/* This process crashes: for a moment nobody takes its chunks, so that a flight recorder can be dumped. */
void cs_events_hold(void);
/* After exec: the chunks of this process's earlier image are nobody's any more. */
void cs_events_abandon(uint32_t process);

/* ---- threads.c */
/* Give this process its number; journal its start. Does nothing when that is done. */
void cs_process_enter(uint32_t cause, uint32_t parent);
/* Whether this is a child of fork that is to be left alone. Its events come to nothing. */
bool cs_process_ignored(void);
/* The calling thread's block, registered if need be; NULL when it cannot have one. */
struct cs_block *cs_thread_block(void);
/* The thread has another name: readers take the last one. */
void cs_thread_rename(struct cs_block *block, const char *name);
/* The same, if the system says so: names are usually set just after a thread began. */
void cs_thread_follow_name(struct cs_block *block);
/* Close the blocks of threads that have ended; at most `checks` blocks are looked at. */
void cs_threads_reap(uint32_t checks);
/* Close all blocks: no thread records any more. They are not given out again. */
void cs_threads_close(void);
/* The slow path, from routines.inc: on return an event may fit, try again. */
void cs_refill(uint64_t sp);
/* From entry.S: the counter's high half changed. Turns the reserved slot into an EPOCH event. */
void cs_new_epoch(uint32_t *slot, uint32_t bytes, uint32_t epoch);
/* Stop and resume recording of the calling thread, around calls out of the agent. */
void cs_mute(void);
void cs_unmute(void);
/* The same for the program itself. Modules and markers are followed meanwhile. */
void cs_pause(void);
void cs_resume(void);

/* ---- journal.c */
struct cs_part {
    const void *data;
    uint64_t bytes;
};
/* Write one record of the parts, about the thread that owns `block` (NULL: none in particular); its offset in the
 * file, or 0 when there was no room. */
uint64_t cs_journal_write(uint16_t kind, uint64_t tsc, const struct cs_block *block, const struct cs_part *parts,
                          uint32_t count);
/* Under KEEP_LAST: a place for the records about the block's new thread, of a thread that has ended if need be. */
void cs_journal_take_cell(struct cs_block *block);
/* Write a record about the block's thread: into its cell, where a flight recorder has those. */
void cs_journal_thread(uint16_t kind, const struct cs_block *block, const void *payload, uint32_t bytes);
/* The same with the thread's name. */
void cs_journal_thread_name(uint16_t kind, const struct cs_block *block);
void cs_journal_text(uint16_t kind, const struct cs_block *block, uint32_t code, const char *text);
void cs_journal_process(uint32_t cause, uint32_t parent);
/* The journal's number for a live process `pid` started no earlier than `born_ns` (CLOCK_MONOTONIC), or 0. */
uint32_t cs_journal_find(uint32_t pid, uint64_t born_ns);
void cs_journal_forget(uint32_t pid);

/* Codes of NOTE records; each is given once a process, except those about a module. */
enum cs_note {
    CS_NOTE_FULL,           /* the events file has no chunk left */
    CS_NOTE_ADDRESS_SPACE,  /* the events file could be mapped in part only */
    CS_NOTE_NO_RECORDER,    /* the recorder cannot be reached */
    CS_NOTE_NO_PLAN,        /* a plan could not be used */
    CS_NOTE_NO_LOADER_HOOK, /* modules loaded later stay unknown */
    CS_NOTE_MODULES,        /* too many modules */
    CS_NOTE_THREADS,        /* too many threads */
    CS_NOTE_NO_WIPE,        /* the kernel has no MADV_WIPEONFORK */
};
void cs_note(enum cs_note code, const char *text);
void cs_note_module(enum cs_note code, const char *reason, const char *path);

/* ---- api.c */
/* Recording has ended for good: lead all trampolines past the agent. For the slow path, which may be anywhere: where a
 * lock is taken nothing is done, and the next event without room tries again. */
void cs_stop_for_good(void);

/* ---- capture.c */
/* What a routine kept of the registers, in the order it lies on the stack. */
struct cs_kept {
    uint64_t rbp, rflags, r11, r10, r9, r8, rdi, rsi, rdx, capture, rax, back, rcx;
};
/* The 16-byte vector registers 0 to 7, then the registers that calls keep, as the traced function has them. */
struct cs_vectors {
    uint64_t words[8][2];
    uint64_t rbx, r12[4];
};
/* From routines.inc: record an entry with its arguments, or an exit with its result. `place` is where the traced call's
 * return address lies. */
void cs_capture_entry(const struct cs_kept *frame, const struct cs_vectors *vectors, const uint64_t *place);
void cs_capture_exit(const struct cs_kept *frame, const struct cs_vectors *vectors, const uint64_t *place);

/* A slot of `bytes` bytes for an event at stack pointer `sp`, and the low half of the clock for it. */
uint32_t *cs_reserve(uint64_t sp, uint32_t bytes, uint32_t *time);

/* ---- hooks.c */
/* What the hooks that compilers call do: nothing, record, or ask cs_hook first. */
enum cs_hooks { CS_HOOKS_OFF, CS_HOOKS_DIRECT, CS_HOOKS_ASK };
extern uint32_t cs_hooks __attribute__((visibility("hidden")));
/* A module whose calls of hooks tell something is traced from now on. */
void cs_hooks_start(void);
void cs_hooks_stop(void);
/* From a hook: `function` was inlined where the hook's call returns to. `type` is EXTENDED_INLINE_*. */
void cs_hook(uint64_t function, uint64_t sp, uint64_t return_address, uint32_t type);

/* ---- switch.c */
/* Turn recording off or on in this process. */
void cs_switch(bool off);
/* At the start of a session, before anything is patched: as the session is now. */
void cs_switch_begin(void);
bool cs_switched_off(void);
/* What the recorder asks of all processes. */
static inline const struct cs_control *cs_control(void) {
    return (const struct cs_control *)((const uint8_t *)cs_session.events + CS_EVENTS_CONTROL);
}

/* ---- script.c */
/* Calls of interpreters cost too much: their recorders are to withdraw. */
void cs_script_stop(void);

/* ---- depth.c */
/* The depth filter, from routines.inc: whether the call that begins (ends) at stack pointer `sp` is to be recorded. */
bool cs_depth_enter(uint64_t sp, uint32_t function);
bool cs_depth_leave(uint64_t sp);
/* Whether a call that began at `sp` would be recorded. */
bool cs_depth_inside(uint64_t sp);
void cs_depth_free(void *lanes);

/* ---- filter.c */
/* What a stack's calls are asked by FILTER_* and the sample; a part of a lane. */
struct cs_filter {
    uint64_t root; /* where the outermost call lies of what is recorded, or 0 */
    bool hides;    /* that call itself is not */
    struct cs_waiting *waiting;
    uint32_t count;
};
/* Take the roles (ROLE_*) of a module's functions, a byte each. */
void cs_filter_roles(const uint8_t *roles, uint32_t count, uint32_t id_base);
/* Whether the call of `function` that begins (ends) at `sp` is recorded. `passed`: calls of the thread seen so far that
 * could have been samples. */
bool cs_filter_enter(struct cs_filter *filter, uint64_t sp, uint32_t function, uint32_t *passed);
bool cs_filter_leave(struct cs_filter *filter, uint64_t sp);
bool cs_filter_inside(const struct cs_filter *filter, uint64_t sp);
void cs_filter_free(struct cs_filter *filter);

#endif

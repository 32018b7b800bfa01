/* Threads of another process, stopped, looked at and let go all together: while a program stands still, each of
 * hundreds of threads must cost microseconds (recording/halt.py). ptrace(2) answers only the thread that seized them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/ptrace.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"

enum state { RUNS, ASKED, SIGNAL, GONE };

enum {
    EVENT_SHIFT = 16,
    EVENT_STOP = 128,
    SYSCALL_BYTES = 2,
    QUEUED = 16,
    MOST_STACK = 1 << 20,
    WINDOW_WORDS = 1 << 13,
    MOST_FRAMES = 16,
    /* 8-byte words from the return address of a signal handler to rsp and rip in its ucontext_t (<sys/ucontext.h>) */
    SAVED_SP = 21,
    SAVED_RIP = 22,
};

struct cs_halted {
    int32_t tid, state, signal, unused;
    struct user_regs_struct registers;
};

struct cs_signal_frame {
    uint64_t thread, address, rip;
};

struct range {
    uint64_t start, end;
};

/* The system call itself: glibc's function guesses from the request what its arguments are. */
static long request(long what, int tid, uint64_t address, const void *data) {
    return syscall(SYS_ptrace, what, (long)tid, address, data);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Signals on their way to a thread, or to its process. */
static uint64_t queued(int tid, uint32_t flags) {
    siginfo_t found[QUEUED];
    struct ptrace_peeksiginfo_args arguments = {.off = 0, .flags = flags, .nr = QUEUED};
    uint64_t signals = 0;
    long count;
    while ((count = request(PTRACE_PEEKSIGINFO, tid, (uint64_t)&arguments, found)) > 0) {
        for (long i = 0; i < count; i++)
            signals |= 1ull << (found[i].si_signo - 1);
        arguments.off += (uint64_t)count;
    }
    return signals;
}

/* System calls that may give EINTR when a thread is stopped, and can begin again: read, write, readv, writev, accept
 * and their like on sockets with time limits; semop, msgsnd, msgrcv, rt_sigtimedwait, io_getevents, semtimedop,
 * epoll_wait and their later forms (signal(7), "Interruption of system calls"). */
static bool may_begin_again(uint64_t number) {
    switch (number) {
    case SYS_read:
    case SYS_write:
    case SYS_readv:
    case SYS_writev:
    case SYS_accept:
    case SYS_sendto:
    case SYS_recvfrom:
    case SYS_sendmsg:
    case SYS_recvmsg:
    case SYS_semop:
    case SYS_msgsnd:
    case SYS_msgrcv:
    case SYS_rt_sigtimedwait:
    case SYS_io_getevents:
    case SYS_semtimedop:
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_accept4:
    case SYS_recvmmsg:
    case 333: /* io_pgetevents */
    case 441: /* epoll_pwait2 */
        return true;
    default:
        return false;
    }
}

/* Lead a thread that was asked to stop back to a wait that this cut short. Most waits begin again of themselves; those
 * that give EINTR instead do here, unless a signal is on its way, too. */
static void begin_wait_again(struct cs_halted *thread) {
    struct user_regs_struct *registers = &thread->registers;
    uint64_t held = 0;
    if ((int64_t)registers->rax != -EINTR || !may_begin_again(registers->orig_rax))
        return;
    request(PTRACE_GETSIGMASK, thread->tid, sizeof held, &held);
    if ((queued(thread->tid, 0) | queued(thread->tid, PTRACE_PEEKSIGINFO_SHARED)) & ~held)
        return;
    registers->rax = registers->orig_rax;
    registers->orig_rax = ~0ull;
    registers->rip -= SYSCALL_BYTES;
    request(PTRACE_SETREGS, thread->tid, 0, registers);
}

static void read_status(struct cs_halted *thread, int status) {
    thread->signal = 0;
    if (!WIFSTOPPED(status) || request(PTRACE_GETREGS, thread->tid, 0, &thread->registers)) {
        thread->state = GONE;
    } else if (status >> EVENT_SHIFT == EVENT_STOP) {
        thread->state = ASKED;
        begin_wait_again(thread);
    } else {
        thread->state = SIGNAL;
        thread->signal = WSTOPSIG(status);
    }
}

/* Wait for threads to stop; how many still run after so many nanoseconds. Those that stopped have their registers. */
CS_EXPORT uint64_t cs_halt_wait(struct cs_halted *threads, uint64_t count, int64_t nanoseconds) {
    const struct timespec pause = {0, 30000};
    enum { SPINS = 8 };
    uint64_t begin = now(), left, idle = 0;
    do {
        bool is_new = false;
        left = 0;
        for (uint64_t i = 0; i < count; i++) {
            int status;
            if (threads[i].state != RUNS)
                continue;
            pid_t found = waitpid(threads[i].tid, &status, __WALL | WNOHANG);
            if (found > 0)
                read_status(&threads[i], status);
            else if (found < 0)
                threads[i].state = GONE;
            is_new |= threads[i].state != RUNS;
            left += threads[i].state == RUNS;
        }
        idle = is_new ? 0 : idle + 1;
        if (left && idle <= SPINS)
            sched_yield();
        else if (left)
            nanosleep(&pause, NULL);
    } while (left && (int64_t)(now() - begin) < nanoseconds);
    return left;
}

/* Seize threads, which run on. */
CS_EXPORT void cs_halt_seize(struct cs_halted *threads, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        threads[i].state = request(PTRACE_SEIZE, threads[i].tid, 0, NULL) ? GONE : RUNS;
}

/* Ask seized threads to stop, and wait for them as `cs_halt_wait` does. */
CS_EXPORT uint64_t cs_halt_stop(struct cs_halted *threads, uint64_t count, int64_t nanoseconds) {
    for (uint64_t i = 0; i < count; i++)
        if (threads[i].state == RUNS)
            request(PTRACE_INTERRUPT, threads[i].tid, 0, NULL);
    return cs_halt_wait(threads, count, nanoseconds);
}

/* Let the threads that stand still go on for good, each with the signal it was given. */
CS_EXPORT void cs_halt_release(struct cs_halted *threads, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (threads[i].state != ASKED && threads[i].state != SIGNAL)
            continue;
        request(PTRACE_DETACH, threads[i].tid, 0, (const void *)(uintptr_t)threads[i].signal);
        threads[i].state = GONE;
    }
}

static uint64_t end_of_mapping(const struct range *mappings, uint64_t count, uint64_t address) {
    uint64_t low = 0, high = count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (mappings[middle].end <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && mappings[low].start <= address ? mappings[low].end : address;
}

/* The first word on a stack that is one of `wanted`, between two addresses; 0 when there is none. */
static uint64_t find_word(int memory, uint64_t from, uint64_t end, const uint64_t *wanted, uint64_t wanted_count) {
    uint64_t words[WINDOW_WORDS];
    while (from + sizeof *words <= end) {
        uint64_t bytes = end - from < sizeof words ? end - from : sizeof words;
        ssize_t got = pread(memory, words, bytes, (off_t)from);
        if (got < (ssize_t)sizeof *words)
            return 0;
        for (uint64_t i = 0; i < (uint64_t)got / sizeof *words; i++)
            for (uint64_t k = 0; k < wanted_count; k++)
                if (words[i] == wanted[k])
                    return from + i * sizeof *words;
        from += (uint64_t)got & ~7ull;
    }
    return 0;
}

/* Find the signal frames on the stacks of threads that stand still, by the addresses that handlers return to; how many
 * there are, at most `limit`. memory: descriptor of /proc/PID/mem. mappings: of the process, in order. */
CS_EXPORT uint64_t cs_halt_frames(const struct cs_halted *threads, uint64_t count, int memory,
                                  const struct range *mappings, uint64_t mapping_count, const uint64_t *restorers,
                                  uint64_t restorer_count, struct cs_signal_frame *frames, uint64_t limit) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t sp = threads[i].registers.rsp & ~7ull;
        for (int depth = 0; depth < MOST_FRAMES && found < limit && threads[i].state != GONE; depth++) {
            uint64_t end = end_of_mapping(mappings, mapping_count, sp), saved[2];
            if (end - sp > MOST_STACK)
                end = sp + MOST_STACK;
            uint64_t at = find_word(memory, sp, end, restorers, restorer_count);
            if (!at || pread(memory, saved, sizeof saved, (off_t)(at + 8 * SAVED_SP)) != sizeof saved)
                break;
            uint64_t frame = at + 8 * SAVED_RIP, outer = saved[0] & ~7ull;
            frames[found++] = (struct cs_signal_frame){i, frame, saved[1]};
            sp = outer >= sp && outer <= frame ? frame : outer;
        }
    }
    return found;
}

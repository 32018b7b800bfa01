/* A thread of the agent that asks the others for their stacks in intervals below the kernel's tick.
 *
 * It shares everything with the program but a stack: it has no thread-local data of its own, so it calls nothing that
 * uses some, and holds all signals back. Who is asked must have used an interval of processor time, and not be waiting
 * at this moment: either its clock moves between two looks, or the kernel says that it waits for a processor only. So
 * waits of the program are left alone. */
#include <fcntl.h>
#include <linux/time_types.h>

#include "../core/agent.h"
#include "../core/memory.h"
#include "../core/system.h"
#include "linux.h"
#include "syscall.h"

#define SECOND 1000000000ull
#define FORGOTTEN 1000 /* intervals after which a thread that does not answer is asked again */
#define MONOTONIC 1
#define ABSOLUTE 1 /* TIMER_ABSTIME */

static uint64_t clock_ns(long clock) {
    struct __kernel_timespec now = {0, 0};
    if (cs_failed(cs_call3(SYS_clock_gettime, clock, (long)&now, 0)))
        return 0;
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* The clock of a thread's processor time (make_thread_cpuclock of the kernel's include/linux/posix-timers.h). */
static long thread_clock(uint32_t tid) {
    return (long)(int32_t)(~tid << 3 | 6);
}

/* Whether a thread is runnable: its state in /proc/self/task/TID/stat, behind a name that may hold anything (proc(5)).
 */
static bool runnable(uint32_t tid) {
    char path[64], number[11], line[128];
    size_t at = 0, digit = sizeof number - 1;
    number[digit] = 0;
    for (; tid; tid /= 10)
        number[--digit] = (char)('0' + tid % 10);
    cs_text_append(path, sizeof path, &at, "/proc/self/task/");
    cs_text_append(path, sizeof path, &at, number + digit);
    cs_text_append(path, sizeof path, &at, "/stat");
    int descriptor = cs_open(path, O_RDONLY);
    if (descriptor < 0)
        return false;
    long bytes = cs_call3(SYS_read, descriptor, (long)line, sizeof line);
    cs_close(descriptor);
    for (long i = bytes - 3; i >= 0; i--)
        if (line[i] == ')')
            return line[i + 2] == 'R';
    return false;
}

/* False: there is no such thread any more. */
static bool look_at(struct cs_block *block, uint32_t pid, uint64_t every) {
    long clock = thread_clock(block->tid);
    uint64_t now = clock_ns(clock);
    if (!now)
        return false;
    if (block->asked && now < block->due_ns + FORGOTTEN * every)
        return true;
    if (now + every / 4 < block->due_ns || (clock_ns(clock) == now && !runnable(block->tid)))
        return true;
    block->due_ns = (now < block->due_ns + every ? block->due_ns : now) + every;
    block->asked = 1;
    cs_sampling_ask(pid, block->tid, 0);
    return true;
}

static __attribute__((noreturn)) void run(void) {
    struct cs_process *process = cs_session.process;
    uint64_t every = cs_session.events->stacks_every, next = clock_ns(MONOTONIC), alive = 1;
    while (alive) {
        uint64_t now = clock_ns(MONOTONIC);
        next = next + every > now ? next + every : now + every;
        struct __kernel_timespec until = {(int64_t)(next / SECOND), (long long)(next % SECOND)};
        cs_call4(SYS_clock_nanosleep, MONOTONIC, ABSOLUTE, (long)&until, 0);
        alive = 0;
        for (uint32_t i = process->first_block; i < process->block_count; i++) {
            struct cs_block *block = &cs_session.blocks[i];
            if (block->used && block->tid)
                alive += look_at(block, process->pid, every);
        }
    }
    __atomic_store_n(&process->sampler, 0, __ATOMIC_RELEASE);
    for (;;)
        cs_call3(SYS_exit, 0, 0, 0);
}

bool cs_sampler_start(void) {
    if (__atomic_exchange_n(&cs_session.process->sampler, 1, __ATOMIC_ACQUIRE))
        return true;
    static uint8_t *stack; /* a child of fork has its own copy, on which nobody is */
    bool done = cs_helper_begin(&stack, run);
    if (!done)
        __atomic_store_n(&cs_session.process->sampler, 0, __ATOMIC_RELEASE);
    return done;
}

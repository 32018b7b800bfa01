/* core/system.h for Linux. */
#include "../core/system.h"

#include <linux/futex.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "../core/agent.h"
#include "../core/memory.h"
#include "linux.h"
#include "syscall.h"

/* Descriptors below stay free: programs may count on getting the lowest number. */
#define HIGH_DESCRIPTOR 500
#define TICKS_PER_SECOND 100 /* of /proc: the same on every x86 kernel */

static __thread struct cs_thread own __attribute__((tls_model("initial-exec"))) = {.block = &cs_no_block};

struct cs_thread *cs_self(void) {
    return &own;
}

int64_t cs_system_thread_place(void) {
    uint64_t thread_pointer;
    __asm__("mov %%fs:0, %0" : "=r"(thread_pointer)); /* System V ABI, 3.4.2: it points to itself */
    return (int64_t)((uint64_t)&own - thread_pointer);
}

uint64_t cs_system_block_signals(void) {
    /* A page of the session's files that cannot be had is mended by the signal's handler, wherever that is found. */
    uint64_t all = ~(1ull << (SIGBUS - 1)), saved = 0;
    cs_call4(SYS_rt_sigprocmask, 0 /* SIG_BLOCK */, (long)&all, (long)&saved, sizeof saved);
    return saved;
}

void cs_system_restore_signals(uint64_t saved) {
    cs_call4(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, (long)&saved, 0, sizeof saved);
}

uint32_t cs_system_pid(void) {
    long pid = cs_call3(SYS_getpid, 0, 0, 0);
    return cs_failed(pid) ? 0 : (uint32_t)pid;
}

uint32_t cs_system_parent_pid(void) {
    return (uint32_t)cs_call3(SYS_getppid, 0, 0, 0);
}

uint32_t cs_system_tid(void) {
    long tid = cs_call3(SYS_gettid, 0, 0, 0);
    return cs_failed(tid) ? 0 : (uint32_t)tid;
}

bool cs_system_thread_gone(uint32_t pid, uint32_t tid) {
    return cs_call3(SYS_tgkill, pid, tid, 0) == -ESRCH;
}

void cs_system_thread_name(char name[CS_THREAD_NAME_BYTES]) {
    memset(name, 0, CS_THREAD_NAME_BYTES);
    cs_call3(SYS_prctl, PR_GET_NAME, (long)name, 0);
}

void cs_system_yield(void) {
    cs_call3(SYS_sched_yield, 0, 0, 0);
}

size_t cs_system_peek(void *to, uint64_t address, size_t bytes) {
    /* Reading stops at the first piece that is not all there. */
    uint64_t first = 4096 - address % 4096;
    struct iovec local = {to, bytes}, remote[2] = {{(void *)address, bytes}, {0}};
    if (first < bytes) {
        remote[0].iov_len = first;
        remote[1] = (struct iovec){(void *)(address + first), bytes - first};
    }
    long read = cs_call6(SYS_process_vm_readv, cs_call3(SYS_getpid, 0, 0, 0), (long)&local, 1, (long)remote,
                         first < bytes ? 2 : 1, 0);
    return cs_failed(read) ? 0 : (size_t)read;
}

bool cs_system_readable(uint64_t address) {
    /* The kernel fetches the mask before it refuses what to do with it. */
    return cs_call4(SYS_rt_sigprocmask, 0x7fffffff, (long)address, 0, sizeof(uint64_t)) == -EINVAL;
}

uint8_t *cs_system_view(const char *path, uint64_t *bytes) {
    int descriptor = cs_open(path, O_RDONLY);
    if (descriptor < 0)
        return NULL;
    *bytes = cs_file_bytes(descriptor);
    uint8_t *data = *bytes ? cs_map(0, *bytes, PROT_READ, MAP_PRIVATE, descriptor, 0) : NULL;
    cs_close(descriptor);
    return data;
}

void cs_system_unview(uint8_t *view, uint64_t bytes) {
    cs_unmap(view, bytes);
}

void cs_system_sync_cores(void) {
    /* linux/membarrier.h: ..._PRIVATE_EXPEDITED_SYNC_CORE, and the registration that it wants once. */
    static const long sync = 1 << 5, announce = 1 << 6;
    if (!cs_failed(cs_call3(SYS_membarrier, announce, 0, 0)) && !cs_failed(cs_call3(SYS_membarrier, sync, 0, 0)))
        return;
    struct timespec pause = {0, 1000000}; /* older kernels: what is in a pipeline is executed much sooner */
    cs_call3(SYS_nanosleep, (long)&pause, 0, 0);
}

void *cs_system_memory(size_t bytes) {
    return cs_map(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void cs_system_release(void *memory, size_t bytes) {
    cs_unmap(memory, bytes);
}

bool cs_system_open_range(void *start, size_t bytes) {
    return !cs_failed(cs_call3(SYS_mprotect, (long)start, (long)bytes, PROT_READ | PROT_WRITE));
}

bool cs_system_commit(void *start, size_t bytes) {
    uint64_t first = (uint64_t)start & ~4095ull, last = ((uint64_t)start + bytes + 4095) & ~4095ull;
    long result;
    do
        result = cs_call3(SYS_madvise, (long)first, (long)(last - first), MADV_POPULATE_WRITE);
    while (result == -EINTR || result == -EAGAIN);
    /* EINVAL: an older kernel, the pages come when they are touched. */
    return !cs_failed(result) || result == -EINVAL;
}

static uint64_t clock_ns(long clock) {
    struct timespec now = {0};
    cs_call3(SYS_clock_gettime, clock, (long)&now, 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void cs_system_clocks(uint64_t *tsc, uint64_t *monotonic_ns, uint64_t *realtime_ns) {
    uint64_t shortest = ~0ull;
    for (int round = 0; round < 3; round++) {
        uint64_t before = cs_tsc(), monotonic = clock_ns(CLOCK_MONOTONIC), after = cs_tsc();
        if (after - before >= shortest)
            continue;
        shortest = after - before;
        *tsc = before + shortest / 2;
        *monotonic_ns = monotonic;
        *realtime_ns = clock_ns(CLOCK_REALTIME);
    }
}

/* The number in field `index` (from 1) of a line of /proc/self/stat, whose second field may hold anything in brackets.
 */
static uint64_t stat_field(const char *line, uint64_t bytes, int index) {
    uint64_t at = bytes;
    while (at && line[at - 1] != ')')
        at--;
    for (int field = 1; at < bytes && field < index; at++)
        if (line[at] == ' ')
            field = field == 1 ? 3 : field + 1;
    uint64_t value = 0;
    for (; at < bytes && line[at] >= '0' && line[at] <= '9'; at++)
        value = value * 10 + (uint64_t)(line[at] - '0');
    return value;
}

uint64_t cs_system_birth_ns(void) {
    char line[1024];
    int descriptor = cs_open("/proc/self/stat", O_RDONLY);
    if (descriptor < 0)
        return 0;
    long bytes = cs_call3(SYS_read, descriptor, (long)line, sizeof line);
    cs_close(descriptor);
    if (bytes <= 0)
        return 0;
    uint64_t born = stat_field(line, (uint64_t)bytes, 22) * (1000000000u / TICKS_PER_SECOND);
    uint64_t asleep = clock_ns(CLOCK_BOOTTIME) - clock_ns(CLOCK_MONOTONIC); /* the field counts suspended time */
    return born > asleep ? born - asleep : 0;
}

int cs_move_descriptor(int descriptor) {
    long moved = cs_call3(SYS_fcntl, descriptor, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);
    if (cs_failed(moved))
        return descriptor;
    cs_close(descriptor);
    return (int)moved;
}

int cs_open(const char *path, int flags) {
    long descriptor = cs_given(path);
    if (descriptor >= 0) {
        descriptor = cs_call3(SYS_fcntl, descriptor, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);
        return cs_failed(descriptor) ? -1 : (int)descriptor;
    }
    do
        descriptor = cs_call4(SYS_openat, AT_FDCWD, (long)path, flags | O_CLOEXEC, 0);
    while (descriptor == -EINTR);
    return cs_failed(descriptor) ? -1 : cs_move_descriptor((int)descriptor);
}

void cs_close(int descriptor) {
    cs_call3(SYS_close, descriptor, 0, 0);
}

uint64_t cs_file_bytes(int descriptor) {
    long end = cs_call3(SYS_lseek, descriptor, 0, 2 /* SEEK_END */);
    return cs_failed(end) ? 0 : (uint64_t)end;
}

/* A thread of the agent that stops the others in turn, one at a time, and records their stacks for them.
 *
 * A stopped thread may hold any lock, so nothing that is done meanwhile waits for one: what the record needs is taken
 * before (the block, the memory for what is remembered of stacks), the walk has no lock, and the rest are calls of the
 * system. The process must not end while a thread is stopped, for that ends this one first, and nobody would let the
 * other go: who ends a process takes the lock of its environment block before (RtlExitUserProcess), and so does this.
 *
 * Who is stopped and found in a system call is taken to wait, unless its processor time says that a capture is due.
 * The system tells that time in coarse steps, so threads found at work may be ahead of it by a little. */
#include "../core/memory.h"
#include "../core/remembered.h"
#include "../core/system.h"
#include "../core/tables.h"
#include "windows_agent.h"

#define STACK_BYTES 0x10000u
#define BEGIN_SUSPENDED 1    /* THREAD_CREATE_FLAGS_CREATE_SUSPENDED */
#define SKIP_THREAD_ATTACH 2 /* THREAD_CREATE_FLAGS_SKIP_THREAD_ATTACH: the program's libraries hear nothing of it */
#define THREAD_TIMES 1       /* ThreadTimes */
#define STEP_NS 20000000u    /* more than a tick of Windows' clock, by which processor time is counted */
#define PEB_LOCK 0x38        /* FastPebLock */
#define OWN_TIMER 2          /* CREATE_WAITABLE_TIMER_HIGH_RESOLUTION: does not change how long the program sleeps */
#define NS_OF_CLOCK 100u
#define ACCESS (THREAD_SUSPEND_RESUME | THREAD_GET_CONTEXT | THREAD_QUERY_INFORMATION)

/* From entry.S: stacks on which the agent's slow paths run. */
extern uint8_t cs_stacks[], cs_stacks_end[];

static uint32_t own_tid;
static uint64_t newest; /* of the threads that were started, one a session: the others end */

bool cs_sampling_wanted(void) {
    return cs_session.events && cs_session.events->stacks_every && cs_system_tid() != own_tid;
}

/* Processor time of a thread. */
static uint64_t used_ns(HANDLE thread) {
    struct {
        LARGE_INTEGER created, ended, kernel, user;
    } times;
    if (NtQueryInformationThread(thread, (THREADINFOCLASS)THREAD_TIMES, &times, sizeof times, NULL))
        return 0;
    return (uint64_t)(times.kernel.QuadPart + times.user.QuadPart) * NS_OF_CLOCK;
}

static void registers_of(struct cs_registers *registers, const CONTEXT *context) {
    /* The context has them in the order of their encoding: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15. */
    static const uint8_t order[] = {0, 2, 1, 3, 6, 7, 5, 4};
    const uint64_t *from = (const uint64_t *)&context->Rax;
    for (uint32_t i = 0; i < CS_REGISTERS; i++)
        registers->at[i] = from[i < sizeof order ? order[i] : i];
    registers->rip = registers->place = context->Rip;
}

/* Whether a thread's next instruction is behind one that calls the system, or Wine's way to do so (its ntdll's stubs).
 */
static bool in_system_call(uint64_t rip) {
    static const uint8_t wine[] = {0xff, 0x14, 0x25, 0x00, 0x10, 0xfe, 0x7f}; /* call [0x7ffe1000] */
    uint8_t code[sizeof wine];
    if (cs_code_peek(code, rip - sizeof code, sizeof code) != sizeof code)
        return false;
    return (code[5] == 0x0f && code[6] == 0x05) || (code[5] == 0xcd && code[6] == 0x2e) ||
           !memcmp(code, wine, sizeof wine);
}

/* A thread between Wine's stub of a system call and the system: say that it is in the stub. */
static void out_of_wine(CONTEXT *context) {
    if (cs_unwind_find(context->Rip) || context->Rsp % 8 || !cs_system_readable(context->Rsp))
        return;
    uint64_t back = *(const uint64_t *)context->Rsp;
    if (!in_system_call(back))
        return;
    context->Rip = back;
    context->Rsp += sizeof back;
}

/* Whether the thread is where its block is as it left it: not in the midst of making room in it. */
static bool may_write(const struct cs_block *block, const CONTEXT *context) {
    const struct cs_thread *thread = cs_thread_of((const uint8_t *)block->handle);
    return thread && thread->block == block && !thread->held &&
           (context->Rsp < (uint64_t)cs_stacks || context->Rsp >= (uint64_t)cs_stacks_end);
}

static void capture(struct cs_block *block, HANDLE thread, uint64_t used) {
    static CONTEXT context;
    static struct cs_registers registers;
    uint64_t every = cs_session.events->stacks_every;
    context.ContextFlags = CONTEXT_CONTROL | CONTEXT_INTEGER;
    if (NtGetContextThread(thread, &context) || !may_write(block, &context))
        return;
    out_of_wine(&context);
    if (used < block->due_ns && in_system_call(context.Rip))
        return;
    registers_of(&registers, &context);
    cs_epilogue_finish(&registers);
    cs_snapshot(&registers, true, 0, CS_STACK_TIMER, block);
    block->due_ns = (used < block->due_ns + every ? block->due_ns : used) + every;
}

/* With block_lock held. */
static void look_at(struct cs_block *block) {
    HANDLE thread = (HANDLE)(uintptr_t)block->timer;
    uint8_t *environment = (uint8_t *)NtCurrentTeb()->ProcessEnvironmentBlock;
    RTL_CRITICAL_SECTION *of_process = *(RTL_CRITICAL_SECTION **)(environment + PEB_LOCK);
    uint64_t used = used_ns(thread);
    if (used + STEP_NS < block->due_ns || !RtlTryEnterCriticalSection(of_process))
        return;
    if (!NtSuspendThread(thread, NULL)) {
        capture(block, thread, used);
        NtResumeThread(thread, NULL);
    }
    RtlLeaveCriticalSection(of_process);
}

static void look_at_all(void) {
    struct cs_process *process = cs_session.process;
    for (uint32_t i = process->first_block; i < process->block_count && !cs_detached; i++) {
        cs_lock(&process->block_lock);
        if (cs_session.blocks[i].used && cs_session.blocks[i].timer)
            look_at(&cs_session.blocks[i]);
        cs_unlock(&process->block_lock);
    }
}

static void wait(HANDLE timer, uint64_t ns) {
    LARGE_INTEGER interval = {.QuadPart = -(LONGLONG)(ns / NS_OF_CLOCK)};
    if (!timer || NtSetTimer(timer, &interval, NULL, NULL, FALSE, 0, NULL) || NtWaitForSingleObject(timer, FALSE, NULL))
        NtDelayExecution(FALSE, &interval);
}

static DWORD WINAPI run(void *number) {
    cs_mute(); /* what it calls is none of the program's */
    HANDLE timer = CreateWaitableTimerExW(NULL, NULL, OWN_TIMER, TIMER_ALL_ACCESS);
    LARGE_INTEGER counter, frequency;
    NtQueryPerformanceCounter(&counter, &frequency);
    uint64_t every = cs_session.events->stacks_every * (uint64_t)frequency.QuadPart / 1000000000u;
    uint64_t next = (uint64_t)counter.QuadPart;
    while (!cs_detached && __atomic_load_n(&newest, __ATOMIC_RELAXED) == (uint64_t)number) {
        NtQueryPerformanceCounter(&counter, NULL);
        uint64_t now = (uint64_t)counter.QuadPart;
        next = next + every > now ? next + every : now + every;
        wait(timer, (next - now) * 1000000000u / (uint64_t)frequency.QuadPart);
        look_at_all();
    }
    if (timer)
        NtClose(timer);
    return 0;
}

static void start(void) {
    HANDLE thread;
    struct cs_thread_information information = {0};
    if (__atomic_exchange_n(&cs_session.process->sampler, 1, __ATOMIC_ACQUIRE))
        return;
    void *number = (void *)__atomic_add_fetch(&newest, 1, __ATOMIC_RELAXED);
    if (NtCreateThreadEx(&thread, THREAD_ALL_ACCESS, NULL, CS_SELF, (void *)run, number,
                         BEGIN_SUSPENDED | SKIP_THREAD_ATTACH, 0, STACK_BYTES, STACK_BYTES, NULL)) {
        __atomic_store_n(&cs_session.process->sampler, 0, __ATOMIC_RELEASE);
        return;
    }
    NtQueryInformationThread(thread, 0, &information, sizeof information, NULL);
    own_tid = (uint32_t)(uintptr_t)information.id.UniqueThread;
    NtResumeThread(thread, NULL);
    NtClose(thread);
}

void cs_sampling_begin(struct cs_block *block) {
    OBJECT_ATTRIBUTES attributes = {.Length = sizeof attributes};
    CLIENT_ID id = {(HANDLE)(uintptr_t)cs_system_pid(), (HANDLE)(uintptr_t)block->tid};
    HANDLE thread;
    if (!cs_sampling_wanted() || !block->tid || NtOpenThread(&thread, ACCESS, &attributes, &id))
        return;
    if (!block->last_stack)
        block->last_stack = cs_system_memory(sizeof(struct cs_remembered));
    block->handle = (uint64_t)NtCurrentTeb();
    block->due_ns = used_ns(thread) + cs_session.events->stacks_every;
    __atomic_store_n(&block->timer, (uint32_t)(uintptr_t)thread, __ATOMIC_RELEASE);
    start();
}

void cs_sampling_end(const struct cs_block *block) {
    if (block->timer)
        NtClose((HANDLE)(uintptr_t)block->timer);
}

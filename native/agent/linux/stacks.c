/* Alternate signal stacks: without one, nobody can be told of a stack overflow. The program does not see them. */
#include "../core/agent.h"
#include "../core/memory.h"
#include "../core/system.h"
#include "crash.h"
#include "interpose.h"
#include "syscall.h"

#define STACK_BYTES 0x10000u
#define STACK_LIMIT 8192u
#define CHECKS 8u
#define RED_ZONE 128u

static struct {
    uint8_t *memory;
    uint32_t tid;
} stacks[STACK_LIMIT];
static uint32_t stack_count, next_check, lock;
static bool of_program;

static __thread uint8_t *own __attribute__((tls_model("initial-exec")));

bool cs_stack_of_program(void) {
    return __atomic_load_n(&of_program, __ATOMIC_RELAXED);
}

/* Memory for a thread: of one that has ended, or new. With the lock. */
static uint8_t *find(uint32_t tid) {
    for (uint32_t checks = stack_count < CHECKS ? stack_count : CHECKS; checks; checks--) {
        uint32_t i = next_check++ % stack_count;
        if (cs_system_thread_gone(cs_system_pid(), stacks[i].tid)) {
            stacks[i].tid = tid;
            return stacks[i].memory;
        }
    }
    if (stack_count == STACK_LIMIT)
        return NULL;
    uint8_t *memory = cs_system_memory(STACK_BYTES);
    if (memory) {
        stacks[stack_count].memory = memory;
        stacks[stack_count++].tid = tid;
    }
    return memory;
}

static long set_stack(const stack_t *stack, stack_t *old) {
    return cs_call3(SYS_sigaltstack, (long)stack, (long)old, 0);
}

void cs_stack_give(void) {
    stack_t old, mine = {.ss_size = STACK_BYTES};
    uint32_t tid = cs_system_tid();
    if (!tid || cs_failed(set_stack(NULL, &old)) || !(old.ss_flags & SS_DISABLE))
        return;
    /* A child of fork may find the lock taken, by a thread it does not have. */
    for (int tries = 0; __atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE); tries++) {
        if (tries == 100)
            return;
        cs_system_yield();
    }
    own = find(tid);
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    mine.ss_sp = own;
    if (own && cs_failed(set_stack(&mine, NULL)))
        own = NULL;
}

/* Whether 8 bytes there can be written: the kernel stores the thread's mask, which is overwritten later. */
static bool writable(uint64_t address) {
    return !cs_failed(cs_call4(SYS_rt_sigprocmask, 0, 0, (long)address, sizeof(uint64_t)));
}

bool cs_stack_leave(ucontext_t *context, struct cs_frame **frame) {
    const struct cs_frame *from = (const struct cs_frame *)((uint8_t *)context - offsetof(struct cs_frame, flags));
    *frame = NULL;
    if (!own || (uint64_t)from - (uint64_t)own >= STACK_BYTES || from->machine.rsp - (uint64_t)own < STACK_BYTES)
        return true;
    const uint8_t *state = (const uint8_t *)from->machine.fpstate;
    uint64_t bytes = 0;
    if (state) {
        struct cs_vector_facts facts;
        memcpy(&facts, state + CS_SOFTWARE_OFFSET, sizeof facts);
        bytes = facts.magic == CS_SOFTWARE_MAGIC ? facts.extended_bytes : CS_FXSAVE_BYTES;
    }
    uint64_t to_state = (from->machine.rsp - RED_ZONE - bytes) & ~63ull;
    struct cs_frame *to = (struct cs_frame *)(((to_state - sizeof *to) & ~15ull) - 8);
    for (uint64_t page = (uint64_t)to; page < from->machine.rsp; page = (page & ~4095ull) + 4096)
        if (!writable(page & ~7ull))
            return false;
    memcpy((void *)to_state, state, bytes);
    *to = *from;
    to->machine.fpstate = state ? (struct _fpstate *)to_state : NULL;
    *frame = to;
    return true;
}

CS_INTERPOSE int sigaltstack(const stack_t *stack, stack_t *old) {
    int (*real)(const stack_t *, stack_t *) = cs_next(CS_NEXT_SIGALTSTACK);
    if (!real || !own)
        return real ? real(stack, old) : -1;
    stack_t before, mine = {.ss_sp = own, .ss_size = STACK_BYTES};
    bool removes = stack && stack->ss_flags & SS_DISABLE;
    int result = real(removes ? &mine : stack, &before);
    if (result)
        return result;
    if (old)
        *old = before.ss_sp == own ? (stack_t){.ss_flags = SS_DISABLE} : before;
    if (stack && !removes && !__atomic_exchange_n(&of_program, true, __ATOMIC_RELAXED))
        cs_signals_use_stacks();
    return result;
}

/* Stacks captured from outside of the program's own code: by timers on each thread's processor time, and at a signal.
 *
 * Both arrive as signals with SA_RESTART, on the agent's signal stacks. A thread that waits uses no processor time, so
 * no timer ever cuts a wait of the program short. Such timers are looked at in the kernel's tick only: for intervals
 * below it there is a thread of the agent (sampler.c). */
#include <errno.h>
#include <linux/time_types.h>
#include <signal.h>
#include <ucontext.h>

#include "../core/memory.h"
#include "../core/system.h"
#include "../core/unwind.h"
#include "crash.h"
#include "linux.h"
#include "syscall.h"

#define TIMER_CODE (-2) /* SI_TIMER: exec throws such signals away, which would end the next program otherwise */
#define OWN_CPU_CLOCK 3 /* CLOCK_THREAD_CPUTIME_ID */
#define COARSE_CLOCK 6  /* CLOCK_MONOTONIC_COARSE: it moves with the tick */
#define TO_THREAD 4     /* SIGEV_THREAD_ID */

static uint64_t tick_ns;

/* The kernel's struct sigevent and struct itimerspec (include/uapi/asm-generic/siginfo.h, linux/time_types.h). */
struct event {
    uint64_t value;
    int32_t signal, notify, thread, reserved[11];
};
struct interval {
    struct __kernel_timespec every, first;
};

static void registers_of(struct cs_registers *registers, const ucontext_t *context) {
    static const uint8_t order[CS_REGISTERS] = {REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP,
                                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (uint32_t i = 0; i < CS_REGISTERS; i++)
        registers->at[i] = (uint64_t)context->uc_mcontext.gregs[order[i]];
    registers->rip = registers->place = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
}

void cs_sampling_ask(uint32_t pid, uint32_t tid, uint32_t number) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_signo = CS_SAMPLE_SIGNAL;
    info.si_code = TIMER_CODE;
    info.si_value.sival_int = (int)number;
    cs_call4(SYS_rt_tgsigqueueinfo, pid, tid, CS_SAMPLE_SIGNAL, (long)&info);
}

/* Have the other threads that are known record their stacks. */
static void tell_others(uint32_t number) {
    const struct cs_process *process = cs_session.process;
    const struct cs_block *own = cs_self()->block;
    for (uint32_t i = process->first_block; i < process->block_count; i++) {
        const struct cs_block *block = &cs_session.blocks[i];
        if (block != own && block->used && block->tid)
            cs_sampling_ask(process->pid, block->tid, number);
    }
}

/* A wait that had begun in the moment between the decision to ask and the signal would end with EINTR, SA_RESTART or
 * not (signal(7)): let it begin again. Its arguments are still in their registers, its number in the code. */
static void begin_wait_again(ucontext_t *context) {
    static const uint16_t waits[] = {SYS_poll,          SYS_select,     SYS_pause,          SYS_nanosleep,
                                     SYS_rt_sigsuspend, SYS_semtimedop, SYS_futex,          SYS_clock_nanosleep,
                                     SYS_epoll_wait,    SYS_pselect6,   SYS_ppoll,          SYS_epoll_pwait,
                                     SYS_io_getevents,  SYS_recvmmsg,   SYS_rt_sigtimedwait};
    greg_t *registers = context->uc_mcontext.gregs;
    uint8_t code[7]; /* mov eax, number; syscall */
    if (registers[REG_RAX] != -EINTR ||
        cs_system_peek(code, (uint64_t)registers[REG_RIP] - sizeof code, sizeof code) != sizeof code ||
        code[0] != 0xb8 || code[5] != 0x0f || code[6] != 0x05)
        return;
    uint32_t number = code[1] | (uint32_t)code[2] << 8 | (uint32_t)code[3] << 16 | (uint32_t)code[4] << 24;
    for (uint32_t i = 0; i < sizeof waits / sizeof *waits; i++)
        if (waits[i] == number) {
            registers[REG_RAX] = number;
            registers[REG_RIP] -= 2;
            return;
        }
}

static void arrived(int number, siginfo_t *info, void *context) {
    struct cs_thread *self = cs_self();
    if (number == CS_SAMPLE_SIGNAL && !info->si_value.sival_int)
        begin_wait_again(context);
    (self->muted ? self->kept : self->paused ? self->left : self->block)->asked = 0;
    if (self->muted || cs_process_ignored())
        return;
    struct cs_registers registers;
    registers_of(&registers, context);
    uint32_t asked = number == CS_SAMPLE_SIGNAL ? (uint32_t)info->si_value.sival_int : (uint32_t)number;
    cs_snapshot(&registers, true, asked, asked ? CS_STACK_SIGNAL : CS_STACK_TIMER, NULL);
    if (number != CS_SAMPLE_SIGNAL && cs_session.process->pid == cs_system_pid())
        tell_others(asked);
}

static void catch (int number) {
    struct cs_action action = {.handler = (void *)arrived,
                               .flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK | CS_SA_RESTORER,
                               .restorer = (void *)cs_signal_return};
    cs_action_set(number, &action);
}

void cs_sampling_start(void) {
    if (!cs_session.events->stacks_every && !cs_session.events->stacks_signal)
        return;
    struct __kernel_timespec tick = {0, 0};
    cs_call3(SYS_clock_getres, COARSE_CLOCK, (long)&tick, 0);
    tick_ns = (uint64_t)tick.tv_sec * 1000000000u + (uint64_t)tick.tv_nsec;
    catch (CS_SAMPLE_SIGNAL);
    if (cs_session.events->stacks_signal)
        catch ((int)cs_session.events->stacks_signal);
    cs_thread_block();
}

void cs_sampling_begin(struct cs_block *block) {
    uint64_t every = cs_session.events->stacks_every;
    if (!every || !block->tid)
        return;
    if (every < tick_ns && cs_sampler_start())
        return;
    struct event event = {.signal = CS_SAMPLE_SIGNAL, .notify = TO_THREAD, .thread = (int32_t)block->tid};
    int32_t timer;
    if (cs_failed(cs_call3(SYS_timer_create, OWN_CPU_CLOCK, (long)&event, (long)&timer)))
        return;
    struct __kernel_timespec time = {(int64_t)(every / 1000000000u), (long long)(every % 1000000000u)};
    struct interval interval = {time, time};
    cs_call4(SYS_timer_settime, timer, 0, (long)&interval, 0);
    block->timer = (uint32_t)timer + 1;
}

void cs_sampling_end(const struct cs_block *block) {
    if (block->timer)
        cs_call3(SYS_timer_delete, (long)block->timer - 1, 0, 0);
}

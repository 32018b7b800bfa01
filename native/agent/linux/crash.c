/* What is written down at a fatal signal: everything raw, nothing interpreted. Async-signal-safe; memory is asked for
 * before it is read, since at a crash no pointer can be trusted. */
#include "crash.h"

#include <asm/prctl.h>

#include "../core/agent.h"
#include "../core/exception.h"
#include "../core/memory.h"
#include "../core/system.h"
#include "linux.h"
#include "syscall.h"

#define PAGE 4096ull
#define USER_CODE 0x33 /* cs of 64-bit programs */
#define RED_ZONE 128u
#define HANDLED_LIMIT 8u /* records of faults that the program handles: some handle them by the thousand */
#define VECTOR_LIMIT 0x4000u
/* How much thread-local memory is looked through: of all libraries at start, of each later one; and how many there are.
 */
#define STATIC_BYTES 0x10000u
#define DYNAMIC_BYTES 0x200u
#define TABLE_LIMIT 64u
/* Where glibc has what pthread_setspecific keeps, whatever its version. */
#define KEYS_START 0x200u
#define KEYS_END 0x800u
#define KEY_NUMBERS 0x10000u
/* Parts of the vector state (SDM volume 1, 13.1). */
enum { PART_YMM = 2, PART_MASKS = 5, PART_ZMM = 6, PART_HIGH_ZMM = 7 };

static uint32_t handled_count;
static uint32_t recorder; /* thread that is writing a record */
static struct cs_exception exception;

/* The first address from `start`, which is a multiple of 8, up to `end` that cannot be read. */
static uint64_t readable_end(uint64_t start, uint64_t end) {
    while (start < end && cs_system_readable(start))
        start = (start & ~(PAGE - 1)) + PAGE;
    return start < end ? start : end;
}

/* The part of [low, high) around `middle` that can be read, in multiples of 8. */
static struct cs_part readable_around(uint64_t low, uint64_t middle, uint64_t high) {
    low &= ~7ull;
    uint64_t page = middle & ~(PAGE - 1);
    if (!cs_system_readable(middle & ~7ull))
        return (struct cs_part){0};
    if (low < page && !cs_system_readable(low))
        low = page;
    return (struct cs_part){(const void *)low, readable_end(low, high & ~7ull) - low};
}

/* From below the red zone, or, where the stack has overflowed, from the first page that is there. */
static struct cs_part stack_part(uint64_t sp) {
    uint64_t start = (sp - RED_ZONE) & ~7ull, end = (start & ~(PAGE - 1)) + CS_CRASH_STACK_BYTES;
    for (int page = 0; page < 2 && !cs_system_readable(start); page++)
        start = (start & ~(PAGE - 1)) + PAGE;
    return (struct cs_part){(const void *)start, readable_end(start, end) - start};
}

static uint32_t part_offset(uint32_t part) {
    uint32_t eax = 0xd, ebx, ecx = part, edx;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return ebx;
}

static struct cs_part vector_part(const ucontext_t *context, struct cs_crash *crash) {
    static const uint32_t parts[] = {PART_YMM, PART_MASKS, PART_ZMM, PART_HIGH_ZMM};
    const uint8_t *state = (const uint8_t *)context->uc_mcontext.fpregs;
    if (!state || (uint64_t)state % 8 ||
        readable_end((uint64_t)state, (uint64_t)state + CS_FXSAVE_BYTES) != (uint64_t)state + CS_FXSAVE_BYTES)
        return (struct cs_part){0};
    struct cs_vector_facts software;
    memcpy(&software, state + CS_SOFTWARE_OFFSET, sizeof software);
    crash->vector_layout = CS_VECTOR_FXSAVE;
    crash->vector_bytes = CS_FXSAVE_BYTES;
    if (software.magic != CS_SOFTWARE_MAGIC || software.bytes < CS_FXSAVE_BYTES + 64 || software.bytes > VECTOR_LIMIT ||
        readable_end((uint64_t)state, (uint64_t)state + software.bytes) < (uint64_t)state + software.bytes)
        return (struct cs_part){state, CS_FXSAVE_BYTES};
    crash->vector_layout = CS_VECTOR_XSAVE;
    crash->vector_bytes = software.bytes & ~7u;
    for (uint32_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (software.features & 1ull << parts[i])
            crash->vector_offsets[i] = part_offset(parts[i]);
    return (struct cs_part){state, crash->vector_bytes};
}

static void copy_registers(struct cs_crash *crash, const ucontext_t *context) {
    static const uint8_t order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    const greg_t *registers = context->uc_mcontext.gregs;
    for (uint32_t i = 0; i < sizeof order; i++)
        crash->registers[i] = (uint64_t)registers[order[i]];
    crash->rip = (uint64_t)registers[REG_RIP];
    crash->rflags = (uint64_t)registers[REG_EFL];
    uint64_t segments = (uint64_t)registers[REG_CSGSFS]; /* cs, gs, fs, ss from the low end */
    crash->segments[0] = (uint16_t)segments;
    crash->segments[1] = (uint16_t)(segments >> 48);
    crash->segments[2] = (uint16_t)(segments >> 32);
    crash->segments[3] = (uint16_t)(segments >> 16);
    cs_call3(SYS_arch_prctl, ARCH_GET_FS, (long)&crash->fs_base, 0);
    cs_call3(SYS_arch_prctl, ARCH_GET_GS, (long)&crash->gs_base, 0);
    memcpy(&crash->signal_mask, &context->uc_sigmask, sizeof crash->signal_mask);
    crash->information[0] = (uint64_t)registers[REG_TRAPNO];
    crash->information[1] = (uint64_t)registers[REG_ERR];
}

static bool copy_words(uint64_t *to, uint64_t address, uint32_t count) {
    if (address % 8 || readable_end(address, address + count * 8) < address + count * 8)
        return false;
    memcpy(to, (const void *)address, count * 8);
    return true;
}

/* What libc++abi keeps by pthread_setspecific: glibc has pairs of an odd number and the pointer, in its description of
 * a thread at fs_base. */
static uint64_t exception_by_key(uint64_t fs_base) {
    uint64_t found = 0, pair[2];
    for (uint64_t at = fs_base + KEYS_START; at < fs_base + KEYS_END && !found && copy_words(pair, at, 2); at += 8)
        if (pair[0] & 1 && pair[0] < KEY_NUMBERS)
            found = cs_exception_among(pair[1] & ~7ull, sizeof(uint64_t));
    return found;
}

/* The C++ exception that this thread handles. Where thread-local memory lies says the C library's table, whose address
 * is behind fs_base (Drepper, "ELF Handling For Thread-Local Storage", 3.4.6; glibc's dtv_t has two words): that of the
 * program and what it was linked with below fs_base, that of libraries loaded later elsewhere. */
static uint64_t handled_exception(uint64_t fs_base) {
    uint64_t found = 0, start = fs_base, table, entry[2];
    if (!copy_words(&table, fs_base + 8, 1))
        return 0;
    for (uint64_t i = 1; i < TABLE_LIMIT && !found && copy_words(entry, table + i * sizeof entry, 2); i++) {
        bool is_static = fs_base - entry[0] < STATIC_BYTES;
        if (is_static && entry[0] < start)
            start = entry[0];
        else if (!is_static && entry[0] % 8 == 0)
            found = cs_exception_among(entry[0], DYNAMIC_BYTES);
    }
    if (!found)
        found = cs_exception_among(start & ~7ull, (uint32_t)(fs_base - (start & ~7ull)));
    return found ? found : exception_by_key(fs_base);
}

extern const Elf64_Ehdr own_header __asm__("__ehdr_start") __attribute__((visibility("hidden")));

static void write_record(const siginfo_t *info, const ucontext_t *context, uint32_t flags) {
    struct cs_crash crash = {.system = CS_CRASH_LINUX,
                             .code = (uint32_t)info->si_signo,
                             .detail = (uint32_t)info->si_code,
                             .crash_flags = flags,
                             .agent_base = (uint64_t)&own_header};
    copy_registers(&crash, context);
    if (info->si_code > 0)
        crash.fault_address = (uint64_t)info->si_addr;
    else {
        crash.information[2] = (uint64_t)(uint32_t)info->si_pid;
        crash.information[3] = info->si_uid;
    }
    cs_system_thread_name(crash.name);
    struct cs_part parts[5] = {{&crash, sizeof crash}};
    parts[1] = vector_part(context, &crash);
    parts[2] = stack_part(crash.registers[4]);
    parts[3] = readable_around(crash.rip - CS_CRASH_CODE_BYTES, crash.rip, crash.rip + CS_CRASH_CODE_BYTES);
    crash.stack_address = (uint64_t)parts[2].data;
    crash.stack_bytes = (uint32_t)parts[2].bytes;
    crash.code_address = (uint64_t)parts[3].data;
    crash.code_bytes = (uint32_t)parts[3].bytes;
    cs_exception_copy(&exception, !flags || info->si_signo == SIGABRT ? handled_exception(crash.fs_base) : 0);
    crash.exception = exception.header;
    crash.pieces_bytes = exception.bytes;
    parts[4] = (struct cs_part){exception.pieces, exception.bytes};
    const struct cs_thread *self = cs_self();
    const struct cs_block *block = self->muted ? self->kept : self->block;
    cs_journal_write(CS_JOURNAL_CRASH, cs_tsc(), block->used ? block : NULL, parts, 5);
}

/* A child of vfork shares this memory with its parent: it must not leave anything in it. */
static bool is_own_process(void) {
    const struct cs_process *process = cs_session.process;
    if (cs_process_ignored())
        return false;
    if (__atomic_load_n(&process->state, __ATOMIC_ACQUIRE) == 0)
        cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    uint32_t pid = cs_system_pid();
    return !pid || !process->pid || pid == process->pid;
}

void cs_crash_record(const siginfo_t *info, const ucontext_t *context, uint32_t flags) {
    if (!cs_session.events || !is_own_process())
        return;
    uint32_t tid = cs_system_tid(), nobody = 0;
    while (!__atomic_compare_exchange_n(&recorder, &nobody, tid, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        if (nobody == tid || cs_system_thread_gone(cs_system_pid(), nobody))
            return; /* a fault while the record was written */
        nobody = 0;
        cs_system_yield();
    }
    if (!flags)
        cs_events_hold();
    write_record(info, context, flags);
    __atomic_store_n(&recorder, 0, __ATOMIC_RELEASE);
}

void cs_crash_handled(const siginfo_t *info, const ucontext_t *context) {
    if (__atomic_load_n(&handled_count, __ATOMIC_RELAXED) < HANDLED_LIMIT)
        cs_crash_record(info, context, CS_CRASH_HANDLED);
    __atomic_fetch_add(&handled_count, 1, __ATOMIC_RELAXED);
}

/* Whether the memory there is the frame of a fatal signal whose handler is still at work: its signal is blocked now,
 * and was not before. */
static bool is_live_frame(const struct cs_frame *frame, uint64_t blocked) {
    int number = frame->info.si_signo;
    if (frame->flags > 15 || frame->link || frame->machine.cs != USER_CODE || frame->machine.rsp < PAGE ||
        !cs_signal_is_fatal(number))
        return false;
    uint64_t bit = 1ull << (number - 1);
    return blocked & bit && !(frame->mask & bit);
}

void cs_crash_at_exit(uint64_t sp) {
    if (!__atomic_load_n(&handled_count, __ATOMIC_RELAXED) || !cs_session.events)
        return;
    uint64_t blocked = 0;
    if (cs_failed(cs_call4(SYS_rt_sigprocmask, 0, 0, (long)&blocked, sizeof blocked)))
        return;
    struct cs_part stack = stack_part(sp + RED_ZONE);
    uint64_t end = (uint64_t)stack.data + stack.bytes;
    /* The kernel aligns a frame like a function's: its first word is where a return address would be. */
    for (uint64_t at = ((uint64_t)stack.data + 15 & ~15ull) + 8; at + sizeof(struct cs_frame) <= end; at += 16) {
        const struct cs_frame *frame = (const struct cs_frame *)at;
        if (is_live_frame(frame, blocked)) {
            cs_crash_record(&frame->info, (const ucontext_t *)&frame->flags, CS_CRASH_HANDLED | CS_CRASH_AT_EXIT);
            return;
        }
    }
}

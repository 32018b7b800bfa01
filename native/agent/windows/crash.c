/* What a thread was at when it faulted. Nobody tells whether a fault will be handled, so there is one record a process,
 * and it is written again at each: who reads it sees from what came later whether the process survived. */
#include "../core/exception.h"
#include "../core/memory.h"
#include "../core/system.h"
#include "windows_agent.h"

#define NOT_HANDLED_HERE EXCEPTION_CONTINUE_SEARCH
#define NAMES_A_THREAD 0x406d1388u
#define NAME_INFORMATION 0x1000u
#define CALLING_THREAD 0xffffffffu

static struct {
    struct cs_crash crash;
    uint8_t copies[CS_CRASH_STACK_BYTES + sizeof(XMM_SAVE_AREA32) + 2 * CS_CRASH_CODE_BYTES + CS_EXCEPTION_LIMIT];
} record;
_Static_assert(sizeof record % 8 == 0, "records of the journal are multiples of 8 bytes");
static uint64_t place;  /* of the record in the journal, or 0 */
static uint32_t writer; /* thread that writes it */

/* Exceptions that C++ and other languages throw by the thousand, and those that tell debuggers something. */
bool cs_crash_is_daily(DWORD code) {
    static const DWORD daily[] = {0xe06d7363, 0xe0434352,     0xe0434f4d, CS_GNU_THROWN, 0x21474343,
                                  0x22474343, 0x0eedfade,     0x40010005, 0x40010006,    0x40010008,
                                  0x4001000a, NAMES_A_THREAD, 0x80000001, 0x80000004};
    for (uint32_t i = 0; i < sizeof daily / sizeof *daily; i++)
        if (code == daily[i])
            return true;
    return false;
}

/* Faults of the processor, as far as Windows gives them names: what programs raise themselves is theirs. */
static bool is_fault(DWORD code) {
    switch (code) {
    case EXCEPTION_ACCESS_VIOLATION:
    case EXCEPTION_IN_PAGE_ERROR:
    case EXCEPTION_ILLEGAL_INSTRUCTION:
    case EXCEPTION_PRIV_INSTRUCTION:
    case EXCEPTION_STACK_OVERFLOW:
    case EXCEPTION_DATATYPE_MISALIGNMENT:
    case EXCEPTION_ARRAY_BOUNDS_EXCEEDED:
    case EXCEPTION_INT_DIVIDE_BY_ZERO:
    case EXCEPTION_INT_OVERFLOW:
    case EXCEPTION_FLT_DENORMAL_OPERAND:
    case EXCEPTION_FLT_DIVIDE_BY_ZERO:
    case EXCEPTION_FLT_INVALID_OPERATION:
    case EXCEPTION_FLT_OVERFLOW:
    case EXCEPTION_FLT_UNDERFLOW:
        return true;
    default:
        return false;
    }
}

/* A program names a thread for debuggers: Microsoft, "How to set a thread name in native code", THREADNAME_INFO. */
static void take_name(const EXCEPTION_RECORD *exception) {
    char name[CS_THREAD_NAME_BYTES] = {0};
    uint32_t tid = (uint32_t)exception->ExceptionInformation[2];
    if (exception->NumberParameters < 3 || exception->ExceptionInformation[0] != NAME_INFORMATION ||
        !cs_system_peek(name, exception->ExceptionInformation[1], sizeof name - 1))
        return;
    if (tid == CALLING_THREAD)
        tid = cs_system_tid();
    const struct cs_process *process = cs_session.process;
    for (uint32_t i = process->first_block; i < process->block_count; i++)
        if (cs_session.blocks[i].used && cs_session.blocks[i].tid == tid)
            cs_thread_rename(&cs_session.blocks[i], name);
}

/* Copy [from, to) to `out`, as far as it can be read; how much that was, in multiples of 8. */
static uint32_t copy(uint8_t *out, uint64_t from, uint64_t to) {
    uint64_t done = 0;
    while (from + done < to) {
        uint64_t bytes = cs_readable_bytes((void *)(from + done)), rest = to - from - done;
        if (!bytes)
            break;
        bytes = bytes < rest ? bytes : rest;
        memcpy(out + done, (void *)(from + done), bytes);
        done += bytes;
    }
    return (uint32_t)(done & ~7ull);
}

static void describe(const EXCEPTION_RECORD *exception, const CONTEXT *context, uint32_t flags) {
    extern IMAGE_DOS_HEADER __ImageBase;
    struct cs_crash *crash = &record.crash;
    memset(&record, 0, sizeof record);
    crash->system = CS_CRASH_WINDOWS;
    crash->code = exception->ExceptionCode;
    crash->detail = exception->ExceptionFlags;
    crash->crash_flags = flags ? flags : is_fault(exception->ExceptionCode) ? 0 : CS_CRASH_RAISED;
    bool has_address = exception->ExceptionCode == (DWORD)EXCEPTION_ACCESS_VIOLATION ||
                       exception->ExceptionCode == (DWORD)EXCEPTION_IN_PAGE_ERROR;
    if (has_address && exception->NumberParameters > 1)
        crash->fault_address = exception->ExceptionInformation[1];
    crash->information[0] = exception->NumberParameters;
    for (uint32_t i = 0; i < exception->NumberParameters && i < 3; i++)
        crash->information[i + 1] = exception->ExceptionInformation[i];
    memcpy(crash->registers, &context->Rax, sizeof crash->registers); /* in the order of their encoding there, too */
    crash->rip = context->Rip;
    crash->rflags = context->EFlags;
    crash->gs_base = (uint64_t)NtCurrentTeb();
    uint16_t segments[] = {context->SegCs, context->SegSs, context->SegFs, context->SegGs};
    memcpy(crash->segments, segments, sizeof segments);
    crash->agent_base = (uint64_t)&__ImageBase;
    cs_system_thread_name(crash->name);
}

static void copy_memory(const CONTEXT *context, uint64_t thrown) {
    struct cs_crash *crash = &record.crash;
    uint8_t *at = record.copies;
    crash->vector_layout = CS_VECTOR_FXSAVE;
    crash->vector_bytes = sizeof context->FltSave;
    memcpy(at, &context->FltSave, sizeof context->FltSave);
    at += sizeof context->FltSave;
    crash->stack_address = context->Rsp & ~7ull;
    crash->stack_bytes = copy(at, crash->stack_address, crash->stack_address + CS_CRASH_STACK_BYTES);
    at += crash->stack_bytes;
    uint64_t first = (context->Rip - CS_CRASH_CODE_BYTES) & ~7ull, page = context->Rip & ~(CS_PLAN_PAGE - 1ull);
    crash->code_address = cs_readable_bytes((void *)first) ? first : page;
    crash->code_bytes = copy(at, crash->code_address, first + 2 * CS_CRASH_CODE_BYTES);
    at += crash->code_bytes;
    /* Of the exception that is being handled or was not caught; of one that is over nothing is left. */
    static struct cs_exception found;
    uint64_t pointer = thrown - CS_THROWN_OFFSET, header = thrown ? cs_exception_among((uint64_t)&pointer, 8) : 0;
    if (!header)
        return;
    cs_exception_copy(&found, header);
    crash->exception = found.header;
    crash->pieces_bytes = found.bytes;
    memcpy(at, found.pieces, found.bytes);
}

static void write(const struct cs_block *block) {
    struct cs_part whole = {&record, sizeof record};
    if (!place) {
        place = cs_journal_write(CS_JOURNAL_CRASH, cs_tsc(), block, &whole, 1);
        return;
    }
    struct cs_journal_record *head = (struct cs_journal_record *)(cs_session.journal_file.base + place);
    __atomic_store_n(&head->kind, 0, __ATOMIC_RELEASE);
    head->tsc = cs_tsc();
    head->tid = cs_system_tid();
    head->thread = block ? block->thread : 0;
    memcpy(head + 1, &record, sizeof record);
    __atomic_store_n(&head->kind, CS_JOURNAL_CRASH, __ATOMIC_RELEASE);
}

static LONG CALLBACK on_fault(EXCEPTION_POINTERS *fault) {
    if (fault->ExceptionRecord->ExceptionCode == NAMES_A_THREAD && !cs_detached)
        take_name(fault->ExceptionRecord);
    DWORD code = fault->ExceptionRecord->ExceptionCode;
    struct cs_block *block = cs_self()->muted ? cs_self()->kept : cs_self()->block;
    if (code == CS_GNU_THROWN && fault->ExceptionRecord->NumberParameters && block->used)
        block->thrown = fault->ExceptionRecord->ExceptionInformation[0];
    if (!cs_crash_is_daily(code) && !cs_detached)
        cs_crash_record(fault->ExceptionRecord, fault->ContextRecord, 0);
    return NOT_HANDLED_HERE;
}

void cs_crash_record(const EXCEPTION_RECORD *exception, const CONTEXT *context, uint32_t flags) {
    uint32_t nobody = 0;
    if (flags &
        CS_CRASH_AT_EXIT) { /* there is no other thread any more; what came before stays: it may have led here */
        writer = nobody;
        place = 0;
    }
    while (!__atomic_compare_exchange_n(&writer, &nobody, cs_system_tid(), false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        if (nobody == cs_system_tid())
            return; /* a fault while the record was written */
        nobody = 0;
        cs_system_yield();
    }
    const struct cs_thread *self = cs_self();
    const struct cs_block *block = self->muted ? self->kept : self->block;
    describe(exception, context, flags);
    copy_memory(context, block->used ? block->thrown : 0);
    if (!record.crash.name[0] && block->used)
        memcpy(record.crash.name, block->name, sizeof record.crash.name);
    write(block->used ? block : NULL);
    __atomic_store_n(&writer, 0, __ATOMIC_RELEASE);
}

void cs_crash_watch(void) {
    static void *handler;
    place = 0;
    if (!handler)
        handler = RtlAddVectoredExceptionHandler(FALSE /* behind the program's own */, on_fault);
    cs_ending_watch();
}

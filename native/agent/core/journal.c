/* The journal: records of any size, claimed by one atomic addition, so that writers never wait for one another. */
#include "agent.h"
#include "memory.h"
#include "system.h"

#define PID_SLOTS ((CS_JOURNAL_HEADER_BYTES - CS_JOURNAL_PIDS) / sizeof(struct cs_journal_pid))

#define CELL_SLOT (CS_JOURNAL_CELL_BYTES / 3)
#define CELL_CHECKS 64

/* Fill a record whose place is this writer's. */
static void fill(struct cs_journal_record *record, uint16_t kind, uint64_t tsc, const struct cs_block *block,
                 uint64_t bytes, const struct cs_part *parts, uint32_t count) {
    struct cs_process *process = cs_session.process;
    cs_clock_pass(tsc);
    __atomic_store_n(&record->size, (uint32_t)bytes, __ATOMIC_RELEASE);
    record->tsc = tsc;
    record->process = process->process;
    record->pid = process->pid;
    record->tid = block ? block->tid : cs_system_tid();
    record->thread = block ? block->thread : 0;
    uint8_t *at = (uint8_t *)(record + 1);
    for (uint32_t i = 0; i < count; at += parts[i++].bytes)
        memcpy(at, parts[i].data, parts[i].bytes);
    __atomic_store_n(&record->kind, kind, __ATOMIC_RELEASE);
}

uint64_t cs_journal_write(uint16_t kind, uint64_t tsc, const struct cs_block *block, const struct cs_part *parts,
                          uint32_t count) {
    struct cs_shared_file *file = &cs_session.journal_file;
    uint64_t bytes = sizeof(struct cs_journal_record), offset = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += parts[i].bytes;
    bytes = (bytes + 7) & ~7ull;
    if (__atomic_load_n(&cs_session.journal->tail, __ATOMIC_RELAXED) + bytes <= file->bytes)
        offset = __atomic_fetch_add(&cs_session.journal->tail, bytes, __ATOMIC_RELAXED);
    if (!offset || offset + bytes > file->bytes || !cs_file_commit(file, offset, bytes)) {
        __atomic_fetch_add(&cs_session.journal->lost, 1, __ATOMIC_RELAXED);
        return 0;
    }
    fill((struct cs_journal_record *)(file->base + offset), kind, tsc, block, bytes, parts, count);
    return offset;
}

/* The records about a thread in its cell: its start and name, who made it, its end. */
static struct cs_journal_record *slot_of(uint64_t cell, uint16_t kind) {
    uint64_t slot = kind == CS_JOURNAL_THREAD_START ? 0 : kind == CS_JOURNAL_THREAD_CREATED ? 1 : 2;
    return (struct cs_journal_record *)(cs_session.journal_file.base + cell + slot * CELL_SLOT);
}

/* Whether the thread that a cell tells of may still run. */
static bool is_lived_in(uint64_t cell) {
    const struct cs_journal_record *start = slot_of(cell, CS_JOURNAL_THREAD_START);
    return start->kind && start->tid && !slot_of(cell, CS_JOURNAL_THREAD_END)->kind &&
           !cs_system_thread_gone(start->pid, start->tid);
}

void cs_journal_take_cell(struct cs_block *block) {
    struct cs_journal_header *journal = cs_session.journal;
    uint64_t cells = journal->cells;
    if (!cells || CS_JOURNAL_HEADER_BYTES + cells * CS_JOURNAL_CELL_BYTES > cs_session.journal_file.bytes)
        return;
    uint64_t cell = 0;
    for (uint32_t checks = 0; checks < CELL_CHECKS; checks++) {
        uint64_t claim = __atomic_fetch_add(&journal->next_cell, 1, __ATOMIC_RELAXED);
        cell = CS_JOURNAL_HEADER_BYTES + claim % cells * CS_JOURNAL_CELL_BYTES;
        if (!cs_file_commit(&cs_session.journal_file, cell, CS_JOURNAL_CELL_BYTES))
            return;
        if (claim < cells || !is_lived_in(cell))
            break;
    }
    memset(slot_of(cell, CS_JOURNAL_THREAD_START), 0, CS_JOURNAL_CELL_BYTES);
    block->cell = cell;
}

void cs_journal_thread(uint16_t kind, const struct cs_block *block, const void *payload, uint32_t bytes) {
    struct cs_part part = {payload, bytes};
    if (!block->cell) {
        cs_journal_write(kind, cs_tsc(), block, &part, 1);
        return;
    }
    struct cs_journal_record *record = slot_of(block->cell, kind);
    if (record->kind && record->thread != block->thread)
        return; /* by now the cell is another's: there were more threads than cells */
    uint64_t tsc = record->kind ? record->tsc : cs_tsc(); /* a new name does not change when the thread began */
    __atomic_store_n(&record->kind, 0, __ATOMIC_RELEASE);
    fill(record, kind, tsc, block, CELL_SLOT, &part, 1);
}

void cs_journal_thread_name(uint16_t kind, const struct cs_block *block) {
    struct {
        struct cs_text_payload head;
        char name[sizeof block->name];
    } text = {.head = {.text_bytes = 0}};
    while (text.head.text_bytes < sizeof text.name && block->name[text.head.text_bytes])
        text.head.text_bytes++;
    memcpy(text.name, block->name, sizeof text.name);
    cs_journal_thread(kind, block, &text, sizeof text.head + text.head.text_bytes);
}

void cs_journal_text(uint16_t kind, const struct cs_block *block, uint32_t code, const char *text) {
    struct cs_text_payload payload = {.text_bytes = (uint32_t)cs_text_length(text), .code = code};
    struct cs_part parts[] = {{&payload, sizeof payload}, {text, payload.text_bytes}};
    cs_journal_write(kind, cs_tsc(), block, parts, 2);
}

static struct cs_journal_pid *pid_slot(uint32_t pid) {
    struct cs_journal_pid *slots = (struct cs_journal_pid *)(cs_session.journal_file.base + CS_JOURNAL_PIDS);
    return &slots[pid % PID_SLOTS];
}

void cs_journal_process(uint32_t cause, uint32_t parent) {
    struct cs_process_start start = {
        .parent_process = parent,
        .ppid = cs_system_parent_pid(),
        .cause = cause,
        .path_bytes = cs_session.path_bytes,
        .command_bytes = cs_session.command_bytes,
    };
    uint64_t tsc;
    cs_system_clocks(&tsc, &start.monotonic_ns, &start.realtime_ns);
    struct cs_part parts[] = {{&start, sizeof start},
                              {cs_session.path, cs_session.path_bytes},
                              {cs_session.command, cs_session.command_bytes}};
    uint64_t offset = cs_journal_write(CS_JOURNAL_PROCESS_START, tsc, NULL, parts, 3);
    if (!offset)
        return;
    uint32_t pid = cs_session.process->pid;
    struct cs_journal_pid entry = {.pid = pid, .record = (uint32_t)(offset / 8)};
    uint64_t word;
    memcpy(&word, &entry, sizeof word);
    __atomic_store_n((uint64_t *)pid_slot(pid), word, __ATOMIC_RELEASE);
}

uint32_t cs_journal_find(uint32_t pid, uint64_t born_ns) {
    struct cs_shared_file *file = &cs_session.journal_file;
    uint64_t word = __atomic_load_n((uint64_t *)pid_slot(pid), __ATOMIC_ACQUIRE);
    struct cs_journal_pid entry;
    memcpy(&entry, &word, sizeof entry);
    uint64_t offset = 8ull * entry.record;
    uint64_t bytes = sizeof(struct cs_journal_record) + sizeof(struct cs_process_start);
    if (entry.pid != pid || offset < CS_JOURNAL_HEADER_BYTES || !cs_file_commit(file, offset, bytes))
        return 0;
    const struct cs_journal_record *record = (const struct cs_journal_record *)(file->base + offset);
    const struct cs_process_start *start = (const struct cs_process_start *)(record + 1);
    if (record->kind != CS_JOURNAL_PROCESS_START || record->pid != pid || start->monotonic_ns < born_ns)
        return 0;
    return record->process;
}

void cs_journal_forget(uint32_t pid) {
    struct cs_journal_pid *slot = pid_slot(pid);
    if (slot->pid == pid)
        __atomic_store_n((uint64_t *)slot, 0, __ATOMIC_RELEASE);
}

void cs_note(enum cs_note code, const char *text) {
    uint32_t bit = 1u << code;
    if (!(__atomic_fetch_or(&cs_session.notes_given, bit, __ATOMIC_RELAXED) & bit))
        cs_journal_text(CS_JOURNAL_NOTE, NULL, code, text);
}

void cs_note_module(enum cs_note code, const char *reason, const char *path) {
    struct cs_text_payload payload = {.code = code};
    struct cs_part parts[] = {
        {&payload, sizeof payload}, {path, cs_text_length(path)}, {": ", 2}, {reason, cs_text_length(reason)}};
    payload.text_bytes = (uint32_t)(parts[1].bytes + parts[2].bytes + parts[3].bytes);
    cs_journal_write(CS_JOURNAL_NOTE, cs_tsc(), NULL, parts, 4);
}

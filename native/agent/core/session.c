/* The session's files: checked once, then opened for writing window by window. */
#include "agent.h"
#include "memory.h"
#include "system.h"

/* The smallest window: large enough that opening one (a call into the kernel) costs nothing. */
#define WINDOW_BYTES 0x4000000ull
#define WINDOW_LIMIT (8 * sizeof(((struct cs_shared_file *)0)->opened))

struct cs_session cs_session;
uint64_t *cs_coarse_clock;

void cs_clock_pass(uint64_t tsc) {
    uint64_t now = cs_coarse_clock ? __atomic_load_n(cs_coarse_clock, __ATOMIC_RELAXED) : tsc;
    while (now < tsc)
        if (__atomic_compare_exchange_n(cs_coarse_clock, &now, tsc, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
            return;
}

void cs_lock(uint32_t *lock) {
    while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE))
        cs_system_yield();
}

void cs_unlock(uint32_t *lock) {
    __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

static void describe_file(struct cs_shared_file *file, uint8_t *base, uint64_t bytes) {
    file->base = base;
    file->bytes = bytes;
    file->window = WINDOW_BYTES;
    while (file->window * WINDOW_LIMIT < bytes)
        file->window *= 2;
}

bool cs_file_commit(struct cs_shared_file *file, uint64_t offset, uint64_t bytes) {
    if (offset > file->bytes || bytes > file->bytes - offset)
        return false;
    for (uint64_t window = offset / file->window; window * file->window < offset + bytes; window++) {
        uint64_t *word = &file->opened[window / 64], bit = 1ull << window % 64;
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) & bit)
            continue;
        uint64_t start = window * file->window, rest = file->bytes - start;
        if (!cs_system_open_range(file->base + start, rest < file->window ? rest : file->window))
            return false;
        __atomic_fetch_or(word, bit, __ATOMIC_RELEASE);
    }
    return cs_system_commit(file->base + offset, bytes);
}

bool cs_session_open(uint8_t *events, uint64_t events_mapped, uint8_t *journal, uint64_t journal_bytes) {
    struct cs_session *session = &cs_session;
    describe_file(&session->events_file, events, events_mapped);
    describe_file(&session->journal_file, journal, journal_bytes);
    if (!cs_file_commit(&session->events_file, 0, CS_EVENTS_HEADER_BYTES) ||
        !cs_file_commit(&session->journal_file, 0, CS_JOURNAL_HEADER_BYTES))
        return false;
    struct cs_events_header *header = (struct cs_events_header *)events;
    struct cs_journal_header *records = (struct cs_journal_header *)journal;
    if (header->magic != CS_EVENTS_MAGIC || header->version != CS_TRACE_VERSION || records->magic != CS_JOURNAL_MAGIC ||
        records->version != CS_TRACE_VERSION || records->tail < CS_JOURNAL_HEADER_BYTES)
        return false;
    uint64_t chunk = header->chunk_bytes;
    if (chunk < 0x10000 || chunk > 0x40000000 || chunk & (chunk - 1) || header->chunk_limit < 2)
        return false;
    session->chunk_bytes = chunk;
    session->chunk_limit = header->chunk_limit;
    session->chunks_mapped = events_mapped / chunk;
    if (session->chunks_mapped > header->chunk_limit)
        session->chunks_mapped = header->chunk_limit;
    session->features = header->features;
    session->max_depth = header->max_depth;
    const struct cs_control *control = (const struct cs_control *)(events + CS_EVENTS_CONTROL);
    session->filters = control->filters;
    session->sample = control->sample;
    session->asks = header->max_depth || control->filters || control->sample;
    bool coarse = header->features & CS_FEATURE_COARSE_CLOCK;
    cs_coarse_clock = coarse ? (uint64_t *)(events + CS_EVENTS_CLOCK) : NULL;
    session->journal = records;
    session->events = header;
    return true;
}

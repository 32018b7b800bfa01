/* Functions of interpreters, as a recorder inside of one tells of them: their calls stand among the native ones. */
#include "callscope/script.h"

#include "agent.h"
#include "memory.h"
#include "system.h"

#define LONGEST_TEXT 4000u
#define EVENT_BYTES (8 + sizeof(struct cs_script_event))

static struct cs_part part_of(const char *text) {
    uint64_t bytes = cs_text_length(text);
    return (struct cs_part){text, bytes < LONGEST_TEXT ? bytes : LONGEST_TEXT};
}

uint32_t callscope_script_function(const struct callscope_script *script) {
    if (!cs_session.events || cs_process_ignored())
        return 0;
    uint64_t signals = cs_system_block_signals();
    cs_process_enter(CS_CAUSE_FORK, cs_session.last_process);
    uint32_t given = __atomic_fetch_add(&cs_session.events->next_script, 1, __ATOMIC_RELAXED);
    struct cs_script_function record = {.function = CS_SCRIPT_FIRST + given, .kind = script->kind};
    struct cs_part parts[] = {
        {&record, sizeof record}, part_of(script->name), part_of(script->file), part_of(script->module)};
    record.name_bytes = (uint32_t)parts[1].bytes;
    record.file_bytes = (uint32_t)parts[2].bytes;
    record.module_bytes = (uint32_t)parts[3].bytes;
    record.line = script->line;
    record.address = script->address;
    bool is_written = given <= CS_LAST_FUNCTION - CS_SCRIPT_FIRST &&
                      cs_journal_write(CS_JOURNAL_SCRIPT_FUNCTION, cs_tsc(), NULL, parts, 4);
    cs_system_restore_signals(signals);
    return is_written ? record.function : 0;
}

static uint32_t stopped;

void cs_script_stop(void) {
    __atomic_store_n(&stopped, 1, __ATOMIC_RELEASE);
}

const uint32_t *callscope_script_stopped(void) {
    return &stopped;
}

static bool is_left_out(uint64_t sp) {
    return stopped || cs_switched_off() || ((cs_session.filters || cs_session.sample) && !cs_depth_inside(sp));
}

static inline void put(uint32_t type) {
    uint64_t sp = (uint64_t)__builtin_frame_address(0);
    if (is_left_out(sp))
        return;
    uint32_t time, *slot = cs_reserve(sp, EVENT_BYTES, &time);
    __atomic_store_n(&slot[1], CALLSCOPE_SCRIPT_WORD, __ATOMIC_RELEASE);
    slot[2] = time;
    slot[3] = (uint32_t)sp & ~7u;
    slot[0] = type;
}

_Static_assert(offsetof(struct cs_thread, block) == 0, "a thread's data begin with the address of its room");
_Static_assert(offsetof(struct cs_block, cursor) == offsetof(struct callscope_room, cursor) &&
                   offsetof(struct cs_block, end) == offsetof(struct callscope_room, end) &&
                   offsetof(struct cs_block, epoch) == offsetof(struct callscope_room, epoch),
               "a room is the head of a block");
_Static_assert(CALLSCOPE_SCRIPT_WORD == (EVENT_BYTES / 8 << 3 | CS_EVENT_EXTENDED), "what events of scripts say");

int64_t callscope_script_room(void) {
    uint64_t slow = CS_FEATURE_NO_CLOCK | CS_FEATURE_COARSE_CLOCK | CS_FEATURE_SWITCHED;
    return cs_session.features & slow || cs_session.asks ? 0 : cs_system_thread_place();
}

void callscope_script_enter(uint32_t function) {
    put(function);
}

void callscope_script_leave(uint32_t function, bool by_exception) {
    put(function | (by_exception ? CS_SCRIPT_UNWOUND : CS_SCRIPT_EXIT));
}

void callscope_script_switch(uint32_t origin, uint32_t target) {
    uint64_t sp = (uint64_t)__builtin_frame_address(0);
    if (is_left_out(sp))
        return;
    uint32_t bytes = 8 + sizeof(struct cs_script_switch), time, *slot = cs_reserve(sp, bytes, &time);
    __atomic_store_n(&slot[1], bytes / 8 << 3 | CS_EVENT_EXTENDED, __ATOMIC_RELEASE);
    slot[2] = time;
    slot[3] = (uint32_t)sp & ~7u;
    slot[4] = origin;
    slot[5] = target;
    slot[0] = CS_EXTENDED_SCRIPT_SWITCH;
}

bool callscope_script_wanted(void) {
    return cs_session.events && cs_session.features & CS_FEATURE_SCRIPTS && !cs_process_ignored();
}

void callscope_script_mute(bool muted) {
    muted ? cs_mute() : cs_unmute();
}

/* What the portable part of the agent asks of an operating system. Each system's directory implements it.
 * Nothing here allocates from the program's heap, takes a lock of the C library or changes errno. */
#ifndef CALLSCOPE_AGENT_SYSTEM_H
#define CALLSCOPE_AGENT_SYSTEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes a thread's name takes, terminator included. */
#define CS_THREAD_NAME_BYTES 16

/* Hold back every signal of this thread; the value restores them. */
uint64_t cs_system_block_signals(void);
void cs_system_restore_signals(uint64_t saved);

/* Ids; 0 when a sandbox forbids asking. */
uint32_t cs_system_pid(void);
uint32_t cs_system_parent_pid(void);
uint32_t cs_system_tid(void);

/* Whether thread `tid` (not 0) of process `pid` has certainly ended. */
bool cs_system_thread_gone(uint32_t pid, uint32_t tid);

/* The name of the calling thread. */
void cs_system_thread_name(char name[CS_THREAD_NAME_BYTES]);

/* How far from a thread's thread pointer its struct cs_thread lies; 0 where that is no constant. */
int64_t cs_system_thread_place(void);

/* Give way to another thread while waiting for a short lock. */
void cs_system_yield(void);

/* Copy up to `bytes` bytes of this process from an address that may not be mapped; how many could be read. */
size_t cs_system_peek(void *to, uint64_t address, size_t bytes);

/* Whether the 8 bytes at `address`, a multiple of 8, can be read. */
bool cs_system_readable(uint64_t address);

/* Map a whole file to be read; NULL when that fails. */
uint8_t *cs_system_view(const char *path, uint64_t *bytes);
void cs_system_unview(uint8_t *view, uint64_t bytes);

/* No processor executes code of this process any more that it fetched before. */
void cs_system_sync_cores(void);

/* A thread of this process has a block: see to it that the agent's own threads run. */
void cs_control_begin(void);

/* Private zeroed memory, or NULL. */
void *cs_system_memory(size_t bytes);
void cs_system_release(void *memory, size_t bytes);

/* Let a range of a file mapping be written; false when the system refuses. */
bool cs_system_open_range(void *start, size_t bytes);

/* Back a range of a file mapping with real pages now, so that a full disk is an answer instead of a fault. */
bool cs_system_commit(void *start, size_t bytes);

/* CLOCK_MONOTONIC and CLOCK_REALTIME (or their like) in nanoseconds, at the time-stamp counter's value `*tsc`. */
void cs_system_clocks(uint64_t *tsc, uint64_t *monotonic_ns, uint64_t *realtime_ns);

/* CLOCK_MONOTONIC of this process's birth in nanoseconds, or 0 when the system does not tell. */
uint64_t cs_system_birth_ns(void);

#endif

/* What the Windows files of the agent share. */
#ifndef CALLSCOPE_AGENT_WINDOWS_H
#define CALLSCOPE_AGENT_WINDOWS_H

#include "../../inject/inject.h"
#include "../core/modules.h"
#include "image.h"
#include "nt.h"

/* What the agent was started with. */
extern struct cs_start cs_start_options;
/* Nothing is recorded: after detaching, until somebody attaches again. */
extern bool cs_detached;

/* ---- system.c */
/* Find slots for threads' data; false when the program has taken all. */
bool cs_slots_take(void);
/* Place of the data from the thread's environment block, or in its array of expansion slots. */
extern uint32_t cs_slots_offset;
extern bool cs_slots_wide;
/* The data of the stopped thread whose environment block that is; NULL when it has none. */
const struct cs_thread *cs_thread_of(const uint8_t *environment);
/* For how long waits and time stamps are counted: since some moment, in milliseconds. */
uint64_t cs_milliseconds(void);
void cs_sleep(uint32_t milliseconds);
/* How many bytes from `address` on can be read, of those that are alike: 0 when none can. */
uint64_t cs_readable_bytes(const void *address);

/* ---- files.c
 * Paths are UTF-8, as the recorder uses them: under Wine those of Linux. */
/* Open a file; NULL when that fails. `options`: FILE_* of NtCreateFile. */
HANDLE cs_file_open(const char *path, ACCESS_MASK access, ULONG disposition, ULONG options);
uint64_t cs_file_size(HANDLE file);
/* A file of the session, to be mapped at `address` piece by piece. */
bool cs_session_file(const char *name, uint64_t address, uint64_t *bytes);
void cs_session_files_close(void);
/* Take a file's mapping away. */
void cs_session_file_unmap(const struct cs_shared_file *file);
/* Bytes free where they lie. */
uint64_t cs_session_disk_free(void);
/* Map a whole file to be read; NULL when that fails. */
uint8_t *cs_file_view(const char *path, uint64_t *bytes);
void cs_file_unview(const uint8_t *view);
/* The path as the recorder uses it, cut if need be; may call code that is traced. */
void cs_path_of(const UNICODE_STRING *path, char *out, uint64_t bytes);
/* Text in UTF-8, cut if need be. */
void cs_text_of(const UNICODE_STRING *text, char *out, uint64_t bytes);

/* ---- request.c */
/* Ask the recorder about `count` modules; false when it does not answer. cs_ask_answer gives one reply after the other.
 */
bool cs_ask_begin(void);
bool cs_ask_add(const struct cs_module *module, const char *path);
bool cs_ask_send(void);
bool cs_ask_answer(struct cs_reply *reply);
void cs_ask_end(void);
#define CS_ASK_LIMIT 64u

/* ---- region.c */
/* Read the plan a reply names and apply it to the module. NULL when that went well, else the reason why the module
 * stays as it is. */
const char *cs_region_apply(struct cs_module *module, const struct cs_image *image, const struct cs_reply *reply);
void cs_region_release(struct cs_module *module);
/* Lead all trampolines past the agent, and give the modules their own code again. The regions stay: threads may be in
 * them. */
void cs_regions_off(void);

/* ---- api.c */
/* Let the module's files that include callscope.h call the agent, or no more. */
void cs_api_offer(const struct cs_image *image, bool on);

/* ---- threads.c */
struct cs_plan;
/* Stop every other thread of the process, none of them inside of what the plan's patches overwrite; and let them go on.
 * False when that cannot be; they may go on all the same. `region`: where threads found there are sent; NULL when the
 * patches are to be taken back. */
bool cs_threads_stop(const struct cs_plan *plan, const uint8_t *image, const uint8_t *region);
void cs_threads_go_on(void);

/* ---- sampling.c */
/* Whether stacks are captured in intervals. */
bool cs_sampling_wanted(void);

/* ---- epilogue.c */
struct cs_registers;
/* A thread stands anywhere in the code: where that is in an epilogue, which unwind information does not describe, bring
 * the registers to where it does. */
void cs_epilogue_finish(struct cs_registers *registers);
/* Copy up to `bytes` bytes of code that a thread runs; how many could be read. */
size_t cs_code_peek(uint8_t *to, uint64_t address, size_t bytes);

/* ---- loader.c */
void cs_loader_start(void);
/* All modules are unknown again. */
void cs_loader_forget(void);
/* With the module lock held: a module has other contents now, and is asked about again. */
void cs_loader_renew(struct cs_module *module, const char *path);

/* ---- unpack.c */
/* Wait until the program runs what it unpacks; then write its memory to `image_file` and ask again. NULL, or why not.
 */
const char *cs_unpack_wait(struct cs_module *module, const struct cs_image *image, const char *path,
                           const char *image_file);

/* ---- crash.c */
/* Leave a record in the journal of what a thread was at when it faults. */
void cs_crash_watch(void);
/* C++ exceptions of GCC's and LLVM's runtimes (unwind-seh.c, STATUS_GCC_THROW). */
#define CS_GNU_THROWN 0x20474343u
/* Whether an exception is one that programs raise by the thousand. */
bool cs_crash_is_daily(DWORD code);
/* Record a thread's state; `flags`: CRASH_AT_EXIT, or 0 for what may still be handled. */
void cs_crash_record(const EXCEPTION_RECORD *exception, const CONTEXT *context, uint32_t flags);

/* ---- ending.c */
/* See exceptions that nobody handles. */
void cs_ending_watch(void);
/* The process ends, by this thread's wish: record it if abort wished so. */
void cs_ending_exit(void);

/* ---- children.c */
void cs_children_follow(void);

#endif

/* What the Linux files of the agent share. */
#ifndef CALLSCOPE_AGENT_LINUX_H
#define CALLSCOPE_AGENT_LINUX_H

#include "../core/modules.h"
#include "image.h"

/* What the agent was started with. */
struct cs_launch {
    const char *recorder;                                 /* path of the recorder's socket, or NULL */
    const char *path;                                     /* of the program, where it is not to be looked up; or NULL */
    uint64_t program_headers, program_header_count, vdso; /* from the auxiliary vector */
};

extern struct cs_launch cs_launch;

/* ---- start.c */
/* The value of an environment variable, or NULL. */
const char *cs_environment(char **environment, const char *name);

/* Take part in the session of a directory. False when that is not possible. With `arguments` NULL the program itself
 * asks, and the agent is a library like others: it takes no signals. */
bool cs_start(const char *directory, int argument_count, char **arguments);

/* ---- dropin.c */
/* Start a recorder if this is libcalltrace.so: where the session and the recorder's socket are. */
bool cs_dropin_start(char **environment, const char **directory, const char **recorder);
/* The process is about to end: have its own recorder write what there is. Async-signal-safe. */
void cs_dropin_finish(void);

/* ---- request.c */
/* Ask the recorder about modules one by one; the answers come in the same order. */
struct cs_asker {
    int socket;
    uint32_t unanswered;
};
bool cs_ask_begin(struct cs_asker *asker, uint32_t module_count);
bool cs_ask(struct cs_asker *asker, const struct cs_module *module, const char *path);
bool cs_ask_answer(struct cs_asker *asker, struct cs_reply *reply);
/* Wait for one more answer, however long it takes. */
void cs_ask_wait(struct cs_asker *asker);
void cs_ask_end(struct cs_asker *asker);

/* ---- given.c */
/* `descriptor` is the file that `path` means for this process from now on; it belongs to us. */
void cs_give(const char *path, int descriptor);
/* The descriptor that a path means, or -1; it stays where it is. */
int cs_given(const char *path);
/* Close what a path means, or everything (NULL). */
void cs_give_up(const char *path);

/* ---- region.c */
/* Map the plan a reply names and apply it to the module. NULL when that went well, else the reason why the module
 * stays as it is. */
const char *cs_region_apply(struct cs_module *module, const struct cs_image *image, const struct cs_reply *reply);
void cs_region_release(struct cs_module *module);
/* Memory of `bytes` bytes within reach (2 GB) of all of [low, high); NULL when there is none. */
void *cs_map_near(uint64_t low, uint64_t high, uint64_t bytes, int protection);

/* For programs that are attached to: what `cs_region_apply` prepared is written by `commit` (NULL, or the reason why
 * not) while all other threads stand still. `open` and `close` go around `commit` and `revert`; preparing opens. */
const char *cs_region_commit(struct cs_module *module);
void cs_region_open(const struct cs_module *module);
void cs_region_revert(const struct cs_module *module);
void cs_region_close(const struct cs_module *module);
/* Where a thread that stands at `at` goes on once the module is patched; false when it has to move on by itself. */
bool cs_region_moved(const struct cs_module *module, uint64_t at, uint64_t *to);
/* Whether `at` lies in a patch, behind its first byte. */
bool cs_region_patched(const struct cs_module *module, uint64_t at);

/* Where the instruction came from that runs at `at`; false when none does. */
bool cs_region_back(const struct cs_module *module, uint64_t at, uint64_t *to);

/* ---- helper.c */
/* Begin a thread that never returns from `run`, which is another for each `stack` (NULL: not made yet). */
bool cs_helper_begin(uint8_t **stack, void run(void));

/* ---- near.c */
/* Put what belongs there into the stub page of a region that nobody executes yet. */
void cs_near_write(uint8_t *region, uint32_t id_base);

/* ---- attach.c */
enum cs_attachment {
    CS_ATTACHMENT_NONE,     /* the session began with the program, or inside of it */
    CS_ATTACHMENT_PREPARES, /* plans are not written yet */
    CS_ATTACHMENT_RUNS,
};
extern enum cs_attachment cs_attachment __attribute__((visibility("hidden")));

/* ---- frames.c */
/* Tell unwinders and debuggers about the trampolines of a module, or of all modules. */
void cs_frames_add(struct cs_module *module);
void cs_frames_remove(struct cs_module *module);
/* A module came: it may be an unwinder. `ready`: it is relocated, so its code may be called. */
void cs_frames_look_at(const struct cs_module *module, bool ready);
/* A module goes. */
void cs_frames_forget(const struct cs_module *module);

/* ---- start.c */
/* For a SIGBUS: whether the address lies in a file of the session, where there is memory now. */
bool cs_files_mend(uint64_t address);

/* ---- sampling.c */
#define CS_SAMPLE_SIGNAL 62 /* a real-time signal that libraries leave alone */
void cs_sampling_start(void);
/* Have a thread record its stack: with a signal's number, or because it is time (0). */
void cs_sampling_ask(uint32_t pid, uint32_t tid, uint32_t number);

/* ---- sampler.c */
/* Start the thread that asks the others, unless there is one; false when there cannot be. */
bool cs_sampler_start(void);

/* ---- loader.c */
/* Look at the loader's lists for the first time, ask for plans, and have every later change reported. */
void cs_loader_start(void);
void cs_loader_update(void);
/* When attaching: whether the loader is at work, so that its lists cannot be read. */
bool cs_loader_busy(void);
/* Look again before `commit`, which is false when the lists have changed since the last look. */
void cs_loader_look(void);
bool cs_loader_commit(void);
void cs_loader_settle(void);
/* When detaching, likewise in this order; `release`: no thread can be in a region. */
void cs_loader_open(void);
void cs_loader_revert(void);
void cs_loader_close(bool release);
/* Address of the DT_INIT function that cs_module_initialised (entry.S) stood in for. */
uint64_t cs_loader_module_ready(void);

/* Address of the first function of that name that a module behind the agent exports, in the order of the loader's
 * search; or 0. */
uint64_t cs_loader_next_symbol(const char *name);

/* The path that the agent was loaded by, or NULL. */
const char *cs_loader_own_path(void);

void cs_loader_changed(void);
void cs_module_initialised(void);

#endif

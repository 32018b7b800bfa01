/* The agent by the name of libcalltrace.so: preloaded by itself, it starts a recorder of its own, and at the program's
 * end waits until that has written the JSON. Where the recorder is stands in a file beside the library, which
 * `callscope lib-path` writes: the Python to run, and the directory of the package, a line each. */
#include <poll.h>

#include "../core/memory.h"
#include "../core/system.h"
#include "interpose.h"
#include "linux.h"
#include "syscall.h"

#define OWN_NAME "/libcalltrace.so"
#define RECORDER_NAME "/libcalltrace.recorder"
#define START_MILLISECONDS 60000
#define CLOSE_RANGE 436 /* the number of close_range, of Linux 5.9 */
#define WAIT_ALL 0x40000000

static const char program[] = "import sys; sys.path.insert(0, sys.argv[3]); "
                              "from callscope.cli.dropin import main; main(int(sys.argv[1]), int(sys.argv[2]))";
static char answer[8192];
static uint32_t owner; /* process that has the recorder */

static void complain(const char *text) {
    char line[512];
    uint64_t at = 0;
    cs_text_append(line, sizeof line, &at, "callscope: error: ");
    cs_text_append(line, sizeof line - 1, &at, text);
    line[at] = '\n';
    cs_call3(SYS_write, 2, (long)line, (long)at + 1);
}

static bool is_off(const char *value) {
    return value && (cs_text_equal(value, "0") || cs_text_equal(value, "false"));
}

/* What the recorder needs of the environment; not what starts us. */
static char **environment_of_recorder(char **environment) {
    uint64_t count = 0, kept = 0;
    while (environment[count])
        count++;
    char **out = cs_system_memory((count + 1) * sizeof *out);
    for (uint64_t i = 0; out && i < count; i++)
        if (!cs_text_after(environment[i], "LD_PRELOAD=") && !cs_text_after(environment[i], "PYTHONHOME="))
            out[kept++] = environment[i];
    return out;
}

static void number_text(char *text, uint32_t number) {
    char digits[12];
    int count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count)
        *text++ = digits[--count];
    *text = 0;
}

/* In the child, which nobody waits for: nothing of the program's stays open but standard error. */
static _Noreturn void become_recorder(const char *python, const char *package, int out, char **environment,
                                      uint32_t pid) {
    char pid_text[12], out_text[12];
    cs_call3(SYS_setsid, 0, 0, 0);
    long null = cs_call4(SYS_openat, -100, (long)"/dev/null", 2, 0);
    cs_call3(SYS_dup2, out, 3, 0);
    cs_call3(SYS_dup2, null, 0, 0);
    cs_call3(SYS_dup2, null, 1, 0);
    if (cs_failed(cs_call3(CLOSE_RANGE, 4, ~0u, 0)))
        for (int descriptor = 4; descriptor < 1024; descriptor++)
            cs_close(descriptor);
    uint64_t none = 0;
    cs_call4(SYS_rt_sigprocmask, 2, (long)&none, 0, sizeof none);
    number_text(pid_text, pid);
    number_text(out_text, 3);
    const char *arguments[] = {python, "-c", program, pid_text, out_text, package, NULL};
    cs_call3(SYS_execve, (long)python, (long)arguments, (long)environment);
    complain("the recorder cannot be started: run callscope lib-path again");
    for (;;)
        cs_call3(SYS_exit_group, 127, 0, 0);
}

/* Fork twice, so that the program has no child that it did not start. No signal tells of the first. */
static bool launch(const char *python, const char *package, int out, char **environment) {
    uint32_t pid = cs_system_pid();
    long child = cs_call6(SYS_clone, 0, 0, 0, 0, 0, 0);
    if (child == 0) {
        if (cs_call6(SYS_clone, 0, 0, 0, 0, 0, 0) == 0)
            become_recorder(python, package, out, environment, pid);
        for (;;)
            cs_call3(SYS_exit_group, 0, 0, 0);
    }
    if (cs_failed(child))
        return false;
    int status;
    while (cs_call4(SYS_wait4, child, (long)&status, WAIT_ALL, 0) == -EINTR)
        ;
    return true;
}

/* The recorder's words: the trace's directory and its socket, each with a NUL. */
static bool read_answer(int in) {
    uint64_t bytes = 0, words = 0;
    while (words < 2 && bytes < sizeof answer) {
        struct pollfd wait = {.fd = in, .events = POLLIN};
        if (cs_call3(SYS_poll, (long)&wait, 1, START_MILLISECONDS) == 0)
            return false;
        long read = cs_call3(SYS_read, in, (long)answer + (long)bytes, (long)(sizeof answer - bytes));
        if (read == -EINTR)
            continue;
        if (read <= 0)
            return false;
        for (long i = 0; i < read; i++)
            words += !answer[bytes + (uint64_t)i];
        bytes += (uint64_t)read;
    }
    return words == 2;
}

/* The two lines of the file beside the library at `path`. */
static bool read_place(const char *path, char *text, uint64_t room, const char **package) {
    char name[4096];
    uint64_t at = 0, directory = cs_text_length(path) - (sizeof OWN_NAME - 1);
    if (directory + sizeof RECORDER_NAME > sizeof name)
        return false;
    memcpy(name, path, directory);
    at = directory;
    cs_text_append(name, sizeof name, &at, RECORDER_NAME);
    int descriptor = cs_open(name, O_RDONLY);
    long read = descriptor < 0 ? 0 : cs_call3(SYS_read, descriptor, (long)text, (long)room - 1);
    if (descriptor >= 0)
        cs_close(descriptor);
    *package = NULL;
    for (long i = 0; i < read; i++)
        if (text[i] == '\n') {
            text[i] = 0;
            if (*package)
                return true;
            *package = text + i + 1;
        }
    return false;
}

bool cs_dropin_start(char **environment, const char **directory, const char **recorder) {
    static char place[8192];
    const char *path = cs_loader_own_path(), *package;
    uint64_t length = path ? cs_text_length(path) : 0;
    if (length < sizeof OWN_NAME - 1 || !cs_text_equal(path + length - (sizeof OWN_NAME - 1), OWN_NAME) ||
        is_off(cs_environment(environment, "CALLTRACE_ENABLED")))
        return false;
    if (!read_place(path, place, sizeof place, &package)) {
        complain("libcalltrace.so does not know its recorder: preload it from where callscope lib-path says");
        return false;
    }
    int ends[2];
    char **kept = environment_of_recorder(environment);
    if (!kept || cs_failed(cs_call3(SYS_pipe2, (long)ends, 02000000, 0))) /* O_CLOEXEC */
        return false;
    bool started = launch(place, package, ends[1], kept);
    cs_close(ends[1]);
    started = started && read_answer(ends[0]);
    cs_close(ends[0]);
    if (!started)
        return false; /* the recorder has said why */
    owner = cs_system_pid();
    *directory = answer;
    *recorder = answer + cs_text_length(answer) + 1;
    return true;
}

void cs_dropin_finish(void) {
    if (!owner || owner != cs_system_pid())
        return;
    struct cs_asker asker;
    if (cs_ask_begin(&asker, 0))
        cs_ask_wait(&asker);
    cs_ask_end(&asker);
}

CS_INTERPOSE int calltrace_init(void) {
    return 0; /* done before main */
}

CS_INTERPOSE void calltrace_cleanup(void) {
    cs_dropin_finish();
}

/* Modules that come and go, and programs that take away what an agent might want to hold. `agent_modules SCENE ARG`. */
#include "agent_work.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void use(void *handle) {
    int (*function)(int) = (int (*)(int))dlsym(handle, "library_work");
    if (!function || function(4) != 5)
        exit(3);
}

static void load(const char *path, int times) {
    for (int i = 0; i < times; i++) {
        void *handle = dlopen(path, RTLD_NOW);
        if (!handle) {
            fprintf(stderr, "%s\n", dlerror());
            exit(4);
        }
        use(handle);
        dlclose(handle);
    }
}

static void load_elsewhere(const char *path) {
    void *handle = dlmopen(LM_ID_NEWLM, path, RTLD_NOW);
    if (!handle)
        exit(4);
    use(handle);
    dlclose(handle);
}

static void without_descriptors(int times) {
    for (int descriptor = 0; descriptor < 2000; descriptor++)
        close(descriptor);
    work_times(times);
}

/* Only what is listed may be called. */
static void sandboxed(int times) {
    static const int allowed[] = {SYS_exit_group, SYS_write, SYS_rt_sigprocmask, SYS_madvise, SYS_prctl};
    struct sock_filter code[16] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    int length = 1, rules = sizeof allowed / sizeof *allowed;
    for (int i = 0; i < rules; i++)
        code[length++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], (unsigned char)(rules - i), 0);
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = (unsigned short)length, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        exit(5);
    work_times(times);
    _exit(0);
}

static void limited(const char *program, int times) {
    struct rlimit limit = {2ul << 30, 2ul << 30};
    char text[16];
    setrlimit(RLIMIT_AS, &limit);
    snprintf(text, sizeof text, "%d", times);
    execl(program, program, "many", text, NULL);
    exit(6);
}

int main(int count, char **words) {
    const char *scene = count > 1 ? words[1] : "", *argument = count > 2 ? words[2] : "0";
    if (!strcmp(scene, "load"))
        load(argument, 50);
    else if (!strcmp(scene, "load-elsewhere"))
        load_elsewhere(argument);
    else if (!strcmp(scene, "no-descriptors"))
        without_descriptors(atoi(argument));
    else if (!strcmp(scene, "sandbox"))
        sandboxed(atoi(argument));
    else if (!strcmp(scene, "limited"))
        limited(words[0], atoi(argument));
    else if (!strcmp(scene, "many"))
        work_times(atoi(argument));
    else if (!strcmp(scene, "lock-memory")) {
        if (mlockall(MCL_CURRENT | MCL_FUTURE))
            return 77;
        work_times(atoi(argument));
    } else if (!strcmp(scene, "chroot")) {
        if (chroot("/proc") || chdir("/"))
            return 77;
        work_times(atoi(argument));
    } else if (!strcmp(scene, "environment")) {
        extern char **environ;
        for (char **variable = environ; *variable; variable++)
            puts(*variable);
    } else
        return 2;
    return 0;
}

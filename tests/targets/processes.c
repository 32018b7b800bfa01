// Processes: fork, vfork, fork by a raw system call, posix_spawn, exec, popen, orphans; and one that closes every
// descriptor it has. Each child calls functions of this program before it ends.
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

extern char **environ;

NOINLINE static long fibonacci(long n) {
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

NOINLINE static int status_of(pid_t pid) {
    int status = -1;
    while (waitpid(pid, &status, 0) < 0)
        ;
    return status;
}

static void say(const char *what, long value) {
    printf("%s %ld\n", what, value);
    fflush(stdout);
}

static int child(int depth) {
    say("child", fibonacci(10 + depth));
    if (depth > 0) {
        pid_t pid = fork();
        if (pid == 0)
            exit(child(depth - 1));
        say("grandchild ended", status_of(pid));
    }
    return depth + 1;
}

int main(int argc, char **argv) {
    if (argc > 1) {
        say(argv[1], fibonacci(atoi(argv[2])));
        return atoi(argv[2]);
    }
    pid_t pid = fork();
    if (pid == 0)
        exit(child(3));
    say("fork", status_of(pid));

    for (int i = 0; i < 20; i++) {
        pid = vfork();
        if (pid == 0) {
            fibonacci(5);
            _exit(i);
        }
        if (i == 19)
            say("vfork", status_of(pid));
        else
            status_of(pid);
    }
    char *arguments[] = {argv[0], "executed", "12", NULL};
    pid = vfork();
    if (pid == 0) {
        execv(argv[0], arguments);
        _exit(99);
    }
    say("vfork and exec", status_of(pid));

    pid = (pid_t)syscall(SYS_fork);
    if (pid == 0) {
        long sum = 0;
        for (int i = 0; i < 1000; i++)
            sum += fibonacci(8);
        say("raw fork", sum);
        syscall(SYS_exit_group, 4);
    }
    say("raw fork", status_of(pid));

    arguments[1] = "spawned";
    if (posix_spawn(&pid, argv[0], NULL, NULL, arguments, environ) == 0)
        say("posix_spawn", status_of(pid));

    char line[100] = "";
    FILE *pipe = popen("echo from a shell; exit 5", "r");
    if (pipe && fgets(line, sizeof line, pipe))
        printf("popen %s", line);
    say("pclose", pclose(pipe));
    say("system", system("exit 6"));

    // An orphan that outlives its parent, seen through a pipe.
    int ends[2];
    if (pipe2(ends, 0))
        return 1;
    pid = fork();
    if (pid == 0) {
        if (fork() == 0) {
            close(ends[0]);
            usleep(20000);
            long value = fibonacci(9);
            if (write(ends[1], &value, sizeof value) != sizeof value)
                _exit(1);
        }
        _exit(0);
    }
    close(ends[1]);
    status_of(pid);
    long value = 0;
    say("orphan", read(ends[0], &value, sizeof value) == sizeof value ? value : -1);

    pid = fork();
    if (pid == 0) {
        int output = dup(1);
        for (int i = 0; i < 4096; i++)
            if (i != output)
                close(i);
        long sum = 0;
        for (int i = 0; i < 3000; i++)
            sum += fibonacci(8);
        dprintf(output, "closed everything %ld\n", sum);
        close(output);
        _exit(fibonacci(6));
    }
    say("closer", status_of(pid));
    arguments[1] = "replaced";
    fflush(stdout);
    execv(argv[0], arguments);
    return 1;
}

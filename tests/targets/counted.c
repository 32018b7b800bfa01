/* Does a known number of calls: outer() ten times, inner() ten times in each; or waits for signals; or leaves a child.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t interrupts, ended;
volatile int sink;

__attribute__((noinline)) void inner(int i) {
    sink += i;
}

__attribute__((noinline)) void outer(void) {
    for (int i = 0; i < 10; i++)
        inner(i);
}

static void on_interrupt(int number) {
    (void)number;
    interrupts++;
}

static void on_end(int number) {
    (void)number;
    ended = 1;
}

static int wait_for_signals(void) {
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_end);
    puts("ready");
    fflush(stdout);
    for (int i = 0; i < 1000 && !ended && !(interrupts && i > 100); i++)
        usleep(interrupts ? 5000 : 20000);
    printf("interrupts %d ended %d\n", (int)interrupts, (int)ended);
    return 3;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "calls";
    if (!strcmp(mode, "signals"))
        return wait_for_signals();
    if (!strcmp(mode, "fork") || !strcmp(mode, "leave")) {
        if (fork() == 0) {
            if (!strcmp(mode, "leave"))
                sleep(2);
            inner(0);
            _exit(0);
        }
        if (!strcmp(mode, "leave"))
            return 0;
        wait(NULL);
    }
    if (!strcmp(mode, "exec"))
        execv(argv[0], (char *[]){argv[0], "calls", NULL});
    for (int i = 0; i < 10; i++)
        outer();
    if (!strcmp(mode, "kill"))
        kill(getpid(), SIGKILL);
    if (!strcmp(mode, "environment")) {
        for (char **variable = environ; *variable; variable++)
            puts(*variable);
    }
    return argc > 2 ? atoi(argv[2]) : 0;
}

/* Ways to get another process. `agent_processes SCENE`; every process calls work() a number of times of its own. */
#include "agent_work.h"

#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *program;

static void wait_for(pid_t child) {
    int status;
    waitpid(child, &status, 0);
    if (status)
        exit(9);
}

static void by_fork(void) {
    work_times(10);
    pid_t child = fork();
    if (!child) {
        work_times(20);
        exit(0);
    }
    wait_for(child);
    work_times(1);
}

static void by_raw_fork(void) {
    work_times(10);
    pid_t child = (pid_t)syscall(SYS_fork);
    if (!child) {
        work_times(20);
        _exit(0);
    }
    wait_for(child);
    work_times(1);
}

/* The child lives in its parent's memory and on its parent's stack. */
static void by_vfork(int before) {
    work_times(before);
    pid_t child = vfork();
    if (!child) {
        work_times(3);
        _exit(0);
    }
    wait_for(child);
    work_times(10);
}

static void by_spawn(void) {
    extern char **environ;
    char *words[] = {program, "plain", NULL};
    pid_t child;
    work_times(10);
    if (posix_spawn(&child, program, NULL, NULL, words, environ))
        exit(8);
    wait_for(child);
}

static void by_exec(int fork_first) {
    work_times(10);
    pid_t child = fork_first ? fork() : 0;
    if (!child) {
        work_times(2);
        execl(program, program, "plain", NULL);
        _exit(7);
    }
    wait_for(child);
}

/* Each generation forks the next before it has done anything. */
static void by_chain(int depth) {
    for (int i = 0; i < depth; i++) {
        pid_t child = fork();
        if (child) {
            wait_for(child);
            work_times(1);
            exit(0);
        }
    }
    work_times(depth);
}

static void *fork_in_thread(void *none) {
    by_fork();
    return none;
}

static void *work_in_thread(void *times) {
    work_times((int)(long)times);
    return NULL;
}

/* In the child a new thread has the first event, while the forking thread's block is stale. */
static void by_fork_then_thread(void) {
    work_times(10);
    pid_t child = fork();
    if (!child) {
        pthread_t threads[4];
        for (int i = 0; i < 4; i++)
            pthread_create(&threads[i], NULL, work_in_thread, (void *)100L);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
        work_times(20);
        exit(0);
    }
    wait_for(child);
}

/* Children while other threads are in the middle of the agent. */
static volatile int stop;

static void *work_until_stopped(void *none) {
    while (!stop) {
        work_times(10);
        usleep(1000);
    }
    return none;
}

static void by_fork_under_load(void) {
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, work_until_stopped, NULL);
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (!child) {
            work_times(5);
            _exit(0);
        }
        wait_for(child);
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
}

static void daemonise(void) {
    int done[2];
    char byte;
    if (pipe(done) || daemon(0, 1))
        exit(6);
    work_times(20);
    (void)!write(done[1], "x", 1);
    (void)!read(done[0], &byte, 1);
}

int main(int count, char **words) {
    const char *scene = count > 1 ? words[1] : "plain";
    program = words[0];
    pthread_t thread;
    if (!strcmp(scene, "plain"))
        work_times(5);
    else if (!strcmp(scene, "fork"))
        by_fork();
    else if (!strcmp(scene, "raw-fork"))
        by_raw_fork();
    else if (!strcmp(scene, "vfork"))
        by_vfork(10);
    else if (!strcmp(scene, "vfork-first"))
        by_vfork(0);
    else if (!strcmp(scene, "spawn"))
        by_spawn();
    else if (!strcmp(scene, "exec"))
        by_exec(0);
    else if (!strcmp(scene, "fork-exec"))
        by_exec(1);
    else if (!strcmp(scene, "chain"))
        by_chain(6);
    else if (!strcmp(scene, "fork-thread"))
        by_fork_then_thread();
    else if (!strcmp(scene, "fork-load"))
        by_fork_under_load();
    else if (!strcmp(scene, "daemon"))
        daemonise();
    else if (!strcmp(scene, "thread-fork")) {
        pthread_create(&thread, NULL, fork_in_thread, NULL);
        pthread_join(thread, NULL);
    } else if (!strcmp(scene, "abort")) {
        work_times(1000);
        abort();
    } else if (!strcmp(scene, "kill")) {
        work_times(1000);
        kill(getpid(), SIGKILL);
    } else
        return 2;
    return 0;
}

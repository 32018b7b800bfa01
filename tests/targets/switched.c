/* Runs the step that each line of its input names, and prints its process id after it. A thread waits meanwhile. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STEP __attribute__((noinline))
#define MARK(n) __asm__ volatile("nopl %c0(%%rax)" : : "i"(0x1000 + n)) /* no two functions are alike, or too short */

STEP void inner(void) {
    MARK(0);
}

STEP void first(void) {
    inner();
    MARK(1);
}

STEP void second(void) {
    inner();
    MARK(2);
}

STEP void third(void) {
    inner();
    MARK(3);
}

STEP void spawned(void) {
    MARK(4);
}

static pthread_barrier_t end;

STEP void *worker(void *unused) {
    pthread_barrier_wait(&end);
    return unused;
}

int main(int count, char **words) {
    char line[64];
    pthread_t thread;
    if (count > 1) {
        spawned();
        return 0;
    }
    pthread_barrier_init(&end, NULL, 2);
    pthread_create(&thread, NULL, worker, NULL);
    while (fgets(line, sizeof line, stdin) && strcmp(line, "quit\n")) {
        if (!strcmp(line, "first\n"))
            first();
        else if (!strcmp(line, "second\n"))
            second();
        else if (!strcmp(line, "third\n"))
            third();
        else if (!strcmp(line, "spawn\n")) {
            char command[4096];
            snprintf(command, sizeof command, "%s child", words[0]);
            if (system(command))
                return 1;
        }
        printf("%d\n", (int)getpid());
        fflush(stdout);
    }
    pthread_barrier_wait(&end);
    pthread_join(thread, NULL);
    return 0;
}

// Faults as a way of working: COUNT times memory that is not there, repaired by the handler or left by siglongjmp.
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static sigjmp_buf out;
static char *page;
static int jumps, seen;

static void handle(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    seen++;
    if (jumps)
        siglongjmp(out, 1);
    if (info->si_addr == page)
        mprotect(page, 4096, PROT_READ | PROT_WRITE);
}

__attribute__((noinline)) static int touch(int value) {
    *(volatile char *)page = (char)value;
    return value;
}

int main(int count, char **arguments) {
    (void)count;
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    page = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    jumps = !strcmp(arguments[2], "jump");
    volatile int left = 0;
    for (volatile int i = 0; i < atoi(arguments[1]); i++) {
        mprotect(page, 4096, PROT_NONE);
        if (!sigsetjmp(out, 1))
            touch(i);
        else
            left++;
    }
    printf("%d faults, %d left\n", seen, left);
    return 0;
}

/* Uses callscope.h: what is recorded is known. */
#include <callscope.h>
#include <stdio.h>

#ifdef __cplusplus
#define OWN extern "C" __attribute__((noinline))
#else
#define OWN __attribute__((noinline))
#endif

static volatile int sink;

OWN int recorded(int n) {
    return n + sink;
}

OWN int stopped(int n) {
    return n - sink;
}

OWN int paused(int n) {
    return n * sink;
}

OWN void scope(int n) {
    CALLSCOPE_OFF;
    sink += paused(n);
    if (n % 2)
        return;
    sink += paused(n);
}

int main(void) {
    callscope_thread_name("chief");
    for (int i = 0; i < 100; i++) {
        sink += recorded(i);
        callscope_stop();
        sink += stopped(i);
        callscope_start();
        scope(i);
    }
    callscope_marker("half \xc3\xa4 done");
    callscope_pause();
    callscope_pause();
    sink += paused(1);
    callscope_resume();
    callscope_marker("while paused");
    sink += paused(1);
    callscope_resume();
    callscope_resume();
    sink += recorded(1);
    callscope_capture(9);
    puts("done");
    return 0;
}

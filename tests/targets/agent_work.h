/* The function that tests of the agent trace, and count. Built without optimisation, so that it can be patched by hand.
 */
#ifndef AGENT_WORK_H
#define AGENT_WORK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

__attribute__((noinline)) int work(int n) {
    volatile int x = n;
    return x + 1;
}

static int work_times(int times) {
    int sum = 0;
    for (int i = 0; i < times; i++)
        sum += work(i) - i;
    return sum;
}

#endif

/* Makes threads for some seconds, so many at a time; each does a hundred calls. Prints how many a second, and the kilobytes of memory that
 * the program holds after a tenth of the time and at the end. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

volatile int sink;

__attribute__((noinline)) void work(int i) {
    sink += i;
}

static void *run(void *none) {
    for (int i = 0; i < 100; i++)
        work(i);
    return none;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static long resident(void) {
    long pages = 0, held = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file && fscanf(file, "%ld %ld", &pages, &held) != 2)
        held = 0;
    if (file)
        fclose(file);
    return held * 4;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 1, begin = now();
    int together = argc > 2 ? atoi(argv[2]) : 1;
    pthread_t *threads = calloc((size_t)together, sizeof *threads);
    long made = 0, early = 0;
    while (now() - begin < seconds) {
        for (int i = 0; i < together; i++)
            if (pthread_create(&threads[i], NULL, run, NULL))
                return 1;
        for (int i = 0; i < together; i++)
            pthread_join(threads[i], NULL);
        made += together;
        if (!early && now() - begin > seconds / 10)
            early = resident();
    }
    printf("per_second %.0f threads %ld early_kb %ld end_kb %ld\n", (double)made / (now() - begin), made, early, resident());
    free(threads);
    return 0;
}

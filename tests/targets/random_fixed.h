// The functions every random program has, after its tables are known: TABLE0 and TABLE1 entries, SEED, LIMIT, THREADS,
// WITH_TIMER and WITH_EXIT are defined by the program.
#pragma once

enum {
    F_MAIN,
    F_TOP,
    F_THREAD_ROOT,
    F_GUARD_GONE,
    F_ERROR_GONE,
    F_ON_SIGNAL,
    F_S_ROOT,
    F_S_STEP,
    F_CO_ROOT,
    F_CO_STEP,
    F_AT_EXIT_CALL,
    F_CONSTRUCTOR_CALL,
    F_DEEP,
    F_EVEN,
    F_ODD,
    F_S_JUMP,
    F_FIRST // the program's own functions begin here
};

struct Guard {
    int me, d;
    Guard(int me, int d) : me(me), d(d) {}
    ~Guard();
};

extern "C" {
static NOINLINE void top(int par, int d) {
    int me = log_call(F_TOP, par);
    self->jumps = self->floor = 0;
    try {
        table0[rnd() % TABLE0](me, d);
    } catch (Error &e) {
        e.parent = me;
        add(e.value);
    } catch (Other &o) {
        add(o.value);
    }
    self->jumps = self->floor = 0;
    finish(me, RETURNED);
}

// A destructor's work, often while an exception passes: what it calls may throw and jump, but never past it.
static NOINLINE void guard_gone(int par, int d) {
    int me = log_call(F_GUARD_GONE, par);
    int floor = self->floor, jumps = self->jumps;
    self->floor = jumps;
    try {
        if (rnd() % 4 == 0 && more(d))
            table0[rnd() % TABLE0](me, d - 1);
    } catch (Error &e) {
        e.parent = me;
        add(e.value + 1);
    } catch (Other &o) {
        add(o.value + 2);
    }
    self->jumps = jumps;
    self->floor = floor;
    finish(me, RETURNED);
}

// Called by the C++ runtime when the last handler of an exception is left.
static NOINLINE void error_gone(int par) {
    int me = log_call(F_ERROR_GONE, par);
    add(me & 15);
    finish(me, RETURNED);
}

static NOINLINE unsigned long deep(int par, int n) {
    int me = log_call(F_DEEP, par);
    unsigned long x = n;
    if (n > 0)
        x += deep(me, n - 1);
    else if (rnd() % 4 == 0)
        throw Error(me, n + 9);
    else if (rnd() % 4 == 0 && self->jumps > self->floor)
        longjmp(self->buffers[self->jumps - 1], 1);
    finish(me, RETURNED);
    return x * 3;
}

static NOINLINE long odd(int par, unsigned n);

static NOINLINE long even(int par, unsigned n) {
    int me = log_call(F_EVEN, par);
    if (n > 0) {
        finish(me, TAILED);
        return odd(me, n - 1);
    }
    finish(me, RETURNED);
    return 1;
}

static NOINLINE long odd(int par, unsigned n) {
    int me = log_call(F_ODD, par);
    if (n > 0) {
        finish(me, TAILED);
        return even(me, n - 1);
    }
    finish(me, RETURNED);
    return 0;
}

// Raised by the program itself, on the alternate stack; it may leave by exception or longjmp.
static void on_signal(int) {
    int me = log_call(F_ON_SIGNAL, self->handler_parent);
    table0[rnd() % TABLE0](me, 3);
    finish(me, RETURNED);
}

// The handler of the timer: strikes anywhere in the main thread, so it has its own log and random numbers.
static NOINLINE long s_step(int par, int d) {
    int me = log_signal(F_S_STEP, par);
    long x = d;
    if (d > 0)
        x += s_step(me, d - 1);
    if (d == 2)
        x += s_step(me, 0);
    finish_signal(me, RETURNED);
    return x;
}

static NOINLINE void s_jump(int par, int d, jmp_buf *to) {
    int me = log_signal(F_S_JUMP, par);
    if (d > 0)
        s_jump(me, d - 1, to);
    else
        longjmp(*to, 1);
    finish_signal(me, RETURNED);
}

static void s_root(int) {
    int me = log_signal(F_S_ROOT, -1);
    jmp_buf back;
    self->signal_random = self->signal_random * 6364136223846793005ull + 1;
    int d = (int)(self->signal_random >> 61);
    if (d < 5)
        s_step(me, d);
    else if (setjmp(back) == 0)
        s_jump(me, d, &back);
    if (self->signals.count > 3000)
        stop_signal_timer();
    finish_signal(me, RETURNED);
}

// Coroutines call only each other, and yield at any depth.
static NOINLINE long co_step(int par, int number, int d) {
    int me = log_call(F_CO_STEP, par);
    long x = d;
    if (d > 0)
        x += co_step(me, number, d - 1);
    if (d == 2)
        coroutine_yield(number);
    if (d == 4)
        x += co_step(me, number, 1);
    finish(me, RETURNED);
    return x;
}

static void co_root(int number) {
    int me = log_call(F_CO_ROOT, self->handler_parent);
    for (int i = 0;; i++) {
        co_step(me, number, i % 6);
        coroutine_yield(number);
    }
}

static NOINLINE void at_exit_call(void) {
    int me = log_call(F_AT_EXIT_CALL, -1);
    top(me, 3);
    finish(me, RETURNED);
}

static NOINLINE void constructor_call(void) {
    int me = log_call(F_CONSTRUCTOR_CALL, -1);
    top(me, 2);
    finish(me, RETURNED);
}

struct Work {
    uint64_t seed, sum;
    int limit, calls;
};

static void *thread_root(void *argument) {
    Work *work = (Work *)argument;
    thread_begin(work->seed, work->limit);
    int me = log_call(F_THREAD_ROOT, -1);
    while (self->log.count < self->limit)
        top(me, 10);
    work->sum = self->sum;
    work->calls = self->log.count;
    finish(me, RETURNED);
    return nullptr;
}
}

Guard::~Guard() {
    guard_gone(me, d);
}

Error::~Error() {
    error_gone(parent);
}

__attribute__((constructor)) static void start() {
    thread_begin(SEED, LIMIT);
    atexit(dump_truth);
    handle(SIGUSR1, on_signal, SA_ONSTACK | SA_NODEFER);
    constructor_call();
}

int main(int argc, char **argv) {
    int me = log_call(F_MAIN, -1);
    truth_path = argc > 1 ? argv[1] : "/dev/null";
    if (argc > 2)
        self->limit = atoi(argv[2]);
    if (WITH_EXIT)
        atexit(at_exit_call);
    if (WITH_TIMER)
        start_signal_timer(s_root);
    while (self->log.count < self->limit)
        top(me, 12);
    stop_signal_timer();
    if (!self->child) {
        pthread_t thread[THREADS + 1];
        Work work[THREADS + 1];
        for (int i = 0; i < THREADS; i++) {
            work[i] = Work{(uint64_t)SEED * 100 + i, 0, self->limit / 4, 0};
            pthread_create(&thread[i], nullptr, thread_root, &work[i]);
        }
        for (int i = 0; i < THREADS; i++) {
            pthread_join(thread[i], nullptr);
            printf("thread %d: %d calls, sum %016llx\n", i, work[i].calls, (unsigned long long)work[i].sum);
        }
    }
    printf("%s: %d calls, sum %016llx\n", self->child ? "child" : "main", self->log.count,
           (unsigned long long)self->sum);
    finish(me, RETURNED);
    return 0;
}

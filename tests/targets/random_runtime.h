// What every random program shares (tests/builders/random_program.py writes the rest): the truth log, random numbers,
// and the places where control flow leaves the ordinary path. A function logs itself first thing, once a call, with the
// log index of its caller, which it got as an argument; so no return is delayed and tail calls stay tail calls.
#pragma once

#include <alloca.h>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
#define ALWAYS static inline __attribute__((always_inline))
#ifdef __clang__
#define SINGLE __attribute__((noinline))
#else
#define SINGLE __attribute__((noinline, noclone))
#endif
#define RARE(x) __builtin_expect(!!(x), 0)
#define OPAQUE(x) asm volatile("" : "+r"(x))

// How a call ended, as the program itself sees it.
enum End {
    UNWOUND = 0,  // nothing was written later: an exception or a longjmp passed through
    RETURNED = 1, // it ran to its return
    TAILED = 2,   // its last act is the next logged call: a tail call, or a plain call that shares its fate
    FINISHED = 3, // it ran to its end, where the compiler may have made the last destructor a tail call
};

// With TIMED each call says when it began: the trace has only some of them then, and is asked which.
#ifdef TIMED
struct Record {
    int32_t function, parent, end, unused;
    uint64_t time;
};
#define RECORD(function, parent)                                                                                       \
    Record {                                                                                                           \
        function, parent, UNWOUND, 0, moment()                                                                         \
    }
// Certainly later than what was executed before, and earlier than what is executed next, though the counter may stand
// still for some tens of ticks and processors read it ahead of time.
__attribute__((always_inline)) static inline uint64_t moment() {
    __builtin_ia32_lfence();
    uint64_t start = __builtin_ia32_rdtsc();
    while (__builtin_ia32_rdtsc() - start < 200)
        ;
    __builtin_ia32_lfence();
    return start + 100;
}
#else
struct Record {
    int32_t function, parent, end;
};
#define RECORD(function, parent)                                                                                       \
    Record {                                                                                                           \
        function, parent, UNWOUND                                                                                      \
    }
#endif

// One sequence of calls, in the order of their starts. Signal handlers that strike anywhere have their own.
struct Log {
    Record *records;
    int count, base;
};

enum { CAPACITY = 400000, JUMPS = 48, COROUTINES = 3, SIGNAL_STACK = 1 << 19 };

struct Thread {
    Log log, signals;
    int limit, jumps, floor, handler_parent, forks;
    uint64_t random, sum, signal_random;
    jmp_buf buffers[JUMPS];
    char *signal_stack;
    Thread *next;
    pid_t tid;
    bool main, child;
};

struct Error {
    int parent; // the catcher writes itself here: it runs the destructor
    long value;
    Error(int parent, long value) : parent(parent), value(value) {}
    ~Error();
};

struct Other {
    long value;
};

// Passed and returned by value through memory.
struct Big {
    long a[5];
    int parent;
};

static __thread Thread *self;
static Thread *threads;
static pthread_mutex_t threads_lock = PTHREAD_MUTEX_INITIALIZER;
static const char *truth_path;
static timer_t signal_timer;
static bool signal_timer_armed;
static int (*volatile send_signal)(int) = raise; // raise is declared noexcept; what its handler throws must pass

ALWAYS int log_call(int function, int parent) {
    Log *log = &self->log;
    int me = log->count++;
    log->records[me] = RECORD(function, parent);
    return me;
}

ALWAYS void finish(int me, int end) {
    self->log.records[me].end = end;
}

// Not forced inline: at -O0 these are functions of their own that no log knows.
static inline unsigned rnd() {
    uint64_t x = self->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    self->random = x;
    return (unsigned)(x >> 11);
}

static inline bool more(int d) {
    return d > 0 && self->log.count < self->limit;
}

static inline void add(uint64_t x) {
    self->sum = self->sum * 31 + x;
}

ALWAYS int log_signal(int function, int parent) {
    Log *log = &self->signals;
    int me = log->count++;
    log->records[me] = RECORD(function, parent);
    return me;
}

ALWAYS void finish_signal(int me, int end) {
    self->signals.records[me].end = end;
}

static Record *new_records() {
    size_t bytes = sizeof(Record) * CAPACITY;
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        abort();
    return (Record *)at;
}

static void thread_begin(uint64_t seed, int limit) {
    Thread *thread = (Thread *)calloc(1, sizeof(Thread));
    thread->log.records = new_records();
    thread->signals.records = new_records();
    thread->random = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    thread->signal_random = seed + 77;
    thread->limit = limit;
    thread->tid = (pid_t)syscall(SYS_gettid);
    thread->main = thread->tid == getpid();
    pthread_mutex_lock(&threads_lock);
    thread->next = threads;
    threads = thread;
    pthread_mutex_unlock(&threads_lock);
    stack_t stack = {};
    stack.ss_sp = thread->signal_stack = (char *)malloc(SIGNAL_STACK);
    stack.ss_size = SIGNAL_STACK;
    sigaltstack(&stack, nullptr);
    self = thread;
}

static void handle(int signal, void (*handler)(int), int flags) {
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaction(signal, &action, nullptr);
}

// A signal from a timer, on the main thread's alternate stack, until there were enough.
static void start_signal_timer(void (*handler)(int)) {
    handle(SIGRTMIN, handler, SA_ONSTACK | SA_RESTART);
    struct sigevent event = {};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGRTMIN;
    timer_create(CLOCK_MONOTONIC, &event, &signal_timer);
    struct itimerspec every = {{0, 150000}, {0, 150000}};
    signal_timer_armed = true;
    timer_settime(signal_timer, 0, &every, nullptr);
}

static void stop_signal_timer() {
    if (signal_timer_armed) {
        struct itimerspec never = {};
        timer_settime(signal_timer, 0, &never, nullptr);
        signal_timer_armed = false;
    }
}

// The child goes on where fork() returned; its own truth begins here.
static void fork_here() {
    Thread *me = self;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        me->child = true;
        me->tid = (pid_t)syscall(SYS_gettid);
        me->log.base = me->log.count;
        me->signals.base = me->signals.count;
        signal_timer_armed = false;
        me->limit = me->log.count + 1500;
        threads = me;
        me->next = nullptr;
        me->random += 12345;
    } else {
        int status;
        while (waitpid(child, &status, 0) < 0) {
        }
        add(status);
    }
}

// The section of one log: pid, tid, stream, count; then the records, parents relative to the first.
static void dump_log(int file, const Thread *thread, const Log *log, int stream) {
    int count = log->count - log->base;
    size_t bytes = 16 + sizeof(Record) * (size_t)count;
    char *out = (char *)malloc(bytes);
    int32_t head[4] = {(int32_t)getpid(), (int32_t)thread->tid, stream, count};
    memcpy(out, head, 16);
    Record *to = (Record *)(out + 16);
    for (int i = 0; i < count; i++) {
        to[i] = log->records[log->base + i];
        if (to[i].parent >= log->base)
            to[i].parent -= log->base;
        else if (to[i].parent >= 0)
            to[i].parent = -2; // called before the fork
    }
    if (write(file, out, bytes) != (ssize_t)bytes)
        abort();
    free(out);
}

static void dump_truth() {
    int file = open(truth_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0)
        abort();
    for (Thread *thread = threads; thread; thread = thread->next) {
        if (thread->log.count > CAPACITY || thread->signals.count > CAPACITY)
            abort();
        dump_log(file, thread, &thread->log, 0);
        if (thread->signals.count > thread->signals.base)
            dump_log(file, thread, &thread->signals, 1);
    }
    close(file);
}

struct Coroutine {
    ucontext_t inside, outside;
    bool running;
};

static Coroutine coroutines[COROUTINES];

static void coroutine_yield(int number) {
    swapcontext(&coroutines[number].inside, &coroutines[number].outside);
}

// Not from the signal stack: a signal during the coroutine would begin that stack anew, over live frames.
static void coroutine_resume(int number, int me, void (*root)(int)) {
    Coroutine *c = &coroutines[number];
    char *here = (char *)__builtin_frame_address(0);
    bool on_signal_stack = here >= self->signal_stack && here < self->signal_stack + SIGNAL_STACK;
    if (!self->main || c->running || on_signal_stack)
        return;
    if (!c->inside.uc_stack.ss_sp) {
        getcontext(&c->inside);
        c->inside.uc_stack.ss_size = 1 << 17;
        c->inside.uc_stack.ss_sp = malloc(1 << 17);
        makecontext(&c->inside, (void (*)())root, 1, number);
    }
    c->running = true;
    self->handler_parent = me;
    swapcontext(&c->outside, &c->inside);
    c->running = false;
}

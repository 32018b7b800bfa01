/* Writing tokens; choosing and keeping code objects. */
#define _GNU_SOURCE
#include "bytecode_stream.h"
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

Stream stream;
Choice choice;

static char events_path[4096], codes_path[4096];
static uint8_t *window;
static off_t windows;
static bool stopped; /* nothing that follows is kept: a forked child, a full disk, enough recorded */
static long recorded;

static uintptr_t *threads;
static uint32_t thread_count;

static Code *table;
static uint32_t table_size, code_count, chosen_count;
static char *main_file;

/* What is written from now on goes nowhere. */
static void stop(void) {
    stopped = true;
    if (window != NULL) {
        mmap(window, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
}

static bool next_window(void) {
    int file = open(events_path, O_RDWR | O_CLOEXEC);
    off_t start = windows * (off_t)WINDOW_BYTES;
    void *next = MAP_FAILED;
    if (file >= 0) {
        if (posix_fallocate(file, start, WINDOW_BYTES) == 0) {
            next = mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, start);
        }
        close(file);
    }
    if (next == MAP_FAILED) {
        return false;
    }
    if (window != NULL) {
        munmap(window, WINDOW_BYTES);
    }
    windows++;
    window = stream.cursor = next;
    stream.limit = window + WINDOW_BYTES - LONGEST_TOKEN;
    return true;
}

static const uint8_t numbers_of[] = {
    [TOKEN_FAR - NEAR_LIMIT] = 1,   [TOKEN_CODE - NEAR_LIMIT] = 2,   [TOKEN_START - NEAR_LIMIT] = 2,
    [TOKEN_END - NEAR_LIMIT] = 1,   [TOKEN_THREAD - NEAR_LIMIT] = 1, [TOKEN_VALUES - NEAR_LIMIT] = 1,
    [TOKEN_THROW - NEAR_LIMIT] = 2, [TOKEN_AT - NEAR_LIMIT] = 1,     [TOKEN_HANDLED - NEAR_LIMIT] = 1,
    [TOKEN_FRAME - NEAR_LIMIT] = 1,
};

/* Instructions in the window that is full now, at least: more may be inferred. */
static long window_instructions(void) {
    long count = 0;
    for (const uint8_t *next = window; next < stream.cursor;) {
        uint8_t token = *next++;
        int numbers = token < NEAR_LIMIT ? 0 : numbers_of[token - NEAR_LIMIT];
        size_t value = 0;
        count +=
            token < NEAR_LIMIT || token == TOKEN_FAR || token == TOKEN_CODE || (choice.infer && token == TOKEN_START);
        while (numbers-- > 0) {
            int shift = 0;
            value = 0;
            do {
                value |= (size_t)(*next & 0x7F) << shift;
                shift += 7;
            } while (*next++ & 0x80);
        }
        next += token == TOKEN_VALUES ? value - 1 : 0;
    }
    return count;
}

/* Room for one token. */
static void reserve(void) {
    if (stream.cursor < stream.limit) {
        return;
    }
    if (!stopped && choice.limit > 0 && (recorded += window_instructions()) >= choice.limit) {
        stop();
    }
    if (!stopped && !next_window()) {
        *stream.cursor = TOKEN_FULL; /* there is room: the limit keeps LONGEST_TOKEN free */
        stop();
    }
    if (stopped) {
        stream.cursor = window;
        stream.limit = window + WINDOW_BYTES - LONGEST_TOKEN;
    }
}

void stream_number(uint32_t number) {
    uint64_t rest = (uint64_t)number + 1;
    for (; rest >= 0x80; rest >>= 7) {
        *stream.cursor++ = (uint8_t)(rest | 0x80);
    }
    *stream.cursor++ = (uint8_t)rest;
}

void stream_token(uint8_t kind) {
    reserve();
    *stream.cursor++ = kind;
}

void stream_thread(void) {
    uintptr_t thread = this_thread();
    if (thread == stream.thread) {
        return;
    }
    uint32_t number = 0;
    while (number < thread_count && threads[number] != thread) {
        number++;
    }
    if (number == thread_count) {
        uintptr_t *more = realloc(threads, (thread_count + 1) * sizeof *threads);
        if (more == NULL) {
            return;
        }
        threads = more;
        threads[thread_count++] = thread;
    }
    stream_token(TOKEN_THREAD);
    stream_number(number);
    stream.thread = thread;
    stream.code = NULL;
}

void stream_position(uint32_t at) {
    uint32_t near = at - stream.at + NEAR_BIAS;
    if (near - 1 < NEAR_LIMIT - 1) {
        stream_token((uint8_t)near);
    } else {
        stream_token(TOKEN_FAR);
        stream_number(at);
    }
    stream.at = at;
}

void stream_far(Object *code, uint32_t at) {
    stream_thread();
    if (code == stream.code) {
        stream_position(at);
    } else {
        const Code *known = code_of(code);
        if (known->number == 0) {
            return;
        }
        stream_token(TOKEN_CODE);
        stream_number(known->number);
        stream_number(at);
        stream.code = code;
        stream.at = at;
    }
}

void stream_start(const Code *code, uint32_t at) {
    stream_thread();
    stream_token(TOKEN_START);
    stream_number(code->number);
    stream_number(at);
    stream.code = code->code;
    stream.at = at - 1;
}

void stream_end(const Code *code) {
    stream_thread();
    stream_token(TOKEN_END);
    stream_number(code->number);
}

void stream_values(const char *text, size_t bytes) {
    stream_thread();
    if (stream.limit - stream.cursor < (ptrdiff_t)bytes) {
        stream.limit = stream.cursor;
    }
    stream_token(TOKEN_VALUES);
    stream_number((uint32_t)bytes);
    memcpy(stream.cursor, text, bytes);
    stream.cursor += bytes;
}

bool stream_open(const char *events, const char *codes) {
    if (strlen(events) >= sizeof events_path || strlen(codes) >= sizeof codes_path) {
        return false;
    }
    strcpy(events_path, events);
    strcpy(codes_path, codes);
    return next_window() && pthread_atfork(NULL, NULL, stop) == 0;
}

static void write_code(Object *code, uint32_t number) {
    Object *data = api.PyMarshal_WriteObjectToString(code, choice.version < 300 ? 2 : 4);
    if (data == NULL) {
        api.PyErr_Clear();
    }
    intptr_t size = data == NULL ? 0 : api.PyBytes_Size(data);
    uint32_t head[2] = {number, (uint32_t)size};
    int file = stopped ? -1 : open(codes_path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (file >= 0) {
        ssize_t done = write(file, head, sizeof head);
        for (intptr_t at = 0; done > 0 && at < size; at += done) {
            done = write(file, api.PyBytes_AsString(data) + at, (size_t)(size - at));
        }
        close(file);
    }
    if (data != NULL) {
        api.Py_DecRef(data);
    }
}

static bool matches(Object *patterns, const char *text) {
    for (intptr_t i = 0; i < api.PyTuple_Size(patterns); i++) {
        const char *pattern = api_text(api.PyTuple_GetItem(patterns, i));
        if (pattern != NULL && text != NULL && fnmatch(pattern, text, 0) == 0) {
            return true;
        }
    }
    return false;
}

/* Whether this is the code that runs as __main__: its file is the program's. */
static bool is_main(const char *name) {
    Object *globals = name != NULL && strcmp(name, "<module>") == 0 ? api.PyEval_GetGlobals() : NULL;
    const char *module = globals == NULL ? NULL : api_text(api.PyDict_GetItemString(globals, "__name__"));
    return module != NULL && strcmp(module, "__main__") == 0;
}

static bool is_chosen(Object *code) {
    Object *name = api.PyObject_GetAttrString(code, "co_name");
    Object *file = api.PyObject_GetAttrString(code, "co_filename");
    const char *name_text = api_text(name), *file_text = api_text(file);
    if (main_file == NULL && file_text != NULL && is_main(name_text)) {
        main_file = strdup(file_text);
    }
    bool in_main = main_file != NULL && file_text != NULL && strcmp(main_file, file_text) == 0;
    bool right_file = choice.every_file                    ? main_file != NULL
                      : api.PyTuple_Size(choice.files) > 0 ? matches(choice.files, file_text)
                                                           : in_main;
    bool result = right_file && (api.PyTuple_Size(choice.names) == 0 || matches(choice.names, name_text));
    if (name != NULL) {
        api.Py_DecRef(name);
    }
    if (file != NULL) {
        api.Py_DecRef(file);
    }
    return result;
}

static Code *slot(Object *code) {
    uint32_t at = (uint32_t)(((uintptr_t)code >> 4) * 0x9E3779B1u) & (table_size - 1);
    while (table[at].code != NULL && table[at].code != code) {
        at = (at + 1) & (table_size - 1);
    }
    return &table[at];
}

static bool grow_table(void) {
    Code *old = table;
    uint32_t old_size = table_size;
    Code *larger = calloc(old_size ? old_size * 2 : 4096, sizeof *table);
    if (larger == NULL) {
        return false;
    }
    table = larger;
    table_size = old_size ? old_size * 2 : 4096;
    for (uint32_t i = 0; i < old_size; i++) {
        if (old[i].code != NULL) {
            *slot(old[i].code) = old[i];
        }
    }
    free(old);
    return true;
}

Code *code_of(Object *code) {
    static Code nothing;
    if (code_count * 2 >= table_size && !grow_table()) {
        return &nothing;
    }
    Code *found = slot(code);
    if (found->code == NULL) {
        Object *error[3];
        api.PyErr_Fetch(&error[0], &error[1], &error[2]);
        bool chosen = is_chosen(code);
        if (main_file == NULL) {
            found = &nothing;
        } else {
            api.Py_IncRef(code);
            found->code = code;
            code_count++;
            if (chosen) {
                found->number = ++chosen_count;
                write_code(code, found->number);
            }
        }
        api.PyErr_Restore(error[0], error[1], error[2]);
    }
    return found;
}

/* What the programs of tests/builders/random_arguments.py are made of: random values, and a log of what a function was
 * given and gives back, written as callscope writes values. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __cplusplus
#include <string>
#endif

#if defined(__clang__)
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE __attribute__((noinline, noclone))
#endif

enum Colour { RED, GREEN = 5, BLUE = -3 };
enum Wide { FIRST = 1, SECOND = 2, THIRD = 4 };
struct Pair {
    int a, b;
};
struct Mixed {
    long n;
    double x;
};
struct Floats {
    float x, y, z;
};
struct Doubles {
    double x, y;
};
struct Small {
    char c;
    short s;
};
struct Triple {
    long a, b, c;
};
struct FloatInt {
    float f;
    int i;
    float g;
};

static FILE *log_file;
static unsigned long long log_state = 88172645463325252ull;
static int log_first;

static unsigned long long next_value(void) {
    log_state ^= log_state << 13;
    log_state ^= log_state >> 7;
    log_state ^= log_state << 17;
    /* Small numbers, edges and anything. */
    switch (log_state >> 61) {
    case 0:
        return log_state % 10;
    case 1:
        return -(log_state % 10);
    case 2:
        return 1ull << (log_state % 64);
    default:
        return log_state;
    }
}

static void log_open(const char *path) {
    log_file = path ? fopen(path, "w") : stdout;
}
static void log_close(void) {
    fclose(log_file);
}
static void log_begin(const char *name) {
    fprintf(log_file, "%s(", name);
    log_first = 1;
}
static void log_name(const char *name) {
    if (!*name)
        return;
    fprintf(log_file, "%s%s=", log_first ? "" : ", ", name);
    log_first = 0;
}
static void log_result(void) {
    fprintf(log_file, ") = ");
    log_first = -1;
}
static void log_end(void) {
    fprintf(log_file, log_first == -1 ? "\n" : ")\n");
}

#define INTEGER(tag, type, form, wide)                                                                                 \
    static void log_##tag(const char *name, type value) {                                                              \
        log_name(name);                                                                                                \
        fprintf(log_file, form, (wide)value);                                                                          \
    }                                                                                                                  \
    static type make_##tag(void) {                                                                                     \
        return (type)next_value();                                                                                     \
    }
INTEGER(short, short, "%lld", long long)
INTEGER(unsigned_short, unsigned short, "%llu", unsigned long long)
INTEGER(int, int, "%lld", long long)
INTEGER(unsigned, unsigned, "%llu", unsigned long long)
INTEGER(long, long, "%lld", long long)
INTEGER(unsigned_long, unsigned long, "%llu", unsigned long long)
INTEGER(long_long, long long, "%lld", long long)

static void log_character(const char *name, int value, int shown) {
    log_name(name);
    if (value >= 32 && value < 127)
        fprintf(log_file, "'%c'", value);
    else
        fprintf(log_file, "%d", shown);
}
static void log_char(const char *name, char value) {
    log_character(name, value, value);
}
static void log_signed_char(const char *name, signed char value) {
    log_character(name, value, value);
}
static void log_unsigned_char(const char *name, unsigned char value) {
    log_character(name, value, value);
}
static char make_char(void) {
    return (char)next_value();
}
static signed char make_signed_char(void) {
    return (signed char)next_value();
}
static unsigned char make_unsigned_char(void) {
    return (unsigned char)next_value();
}
static void log_bool(const char *name, bool value) {
    log_name(name);
    fprintf(log_file, "%s", value ? "true" : "false");
}
static bool make_bool(void) {
    return next_value() & 1;
}
/* %a is exact: the reader turns both sides into the same form. */
static void log_float(const char *name, float value) {
    log_name(name);
    fprintf(log_file, "%a", (double)value);
}
static void log_double(const char *name, double value) {
    log_name(name);
    fprintf(log_file, "%a", value);
}
static void log_long_double(const char *name, long double value) {
    log_name(name);
    fprintf(log_file, "%La", value);
}
static double make_double(void) {
    return (double)(long long)next_value() / 1024.0;
}
static float make_float(void) {
    return (float)make_double();
}
static long double make_long_double(void) {
    return (long double)make_double() / 3.0L;
}
static void log_Colour(const char *name, enum Colour value) {
    log_name(name);
    fprintf(log_file, "%s", value == RED ? "RED" : value == GREEN ? "GREEN" : "BLUE");
}
static enum Colour make_Colour(void) {
    unsigned long long value = next_value() % 3;
    return value == 0 ? RED : value == 1 ? GREEN : BLUE;
}
static void log_Wide(const char *name, enum Wide value) {
    static const char *const names[] = {"0",     "FIRST",       "SECOND",       "FIRST|SECOND",
                                        "THIRD", "FIRST|THIRD", "SECOND|THIRD", "FIRST|SECOND|THIRD"};
    log_name(name);
    fprintf(log_file, "%s", names[(unsigned)value & 7]);
}
static enum Wide make_Wide(void) {
    return (enum Wide)(next_value() & 7);
}
static void log_pointer(const char *name, int *value) {
    log_name(name);
    if (value)
        fprintf(log_file, "0x%llx", (unsigned long long)value);
    else
        fprintf(log_file, "NULL");
}
static int *make_pointer(void) {
    return next_value() & 1 ? (int *)(size_t)(next_value() & 0xfffffffffffull) : 0;
}
static const char *const log_texts[] = {"",    "a", "hello world", "quote \" and \\", "tab\tand\nline", "twelve bytes",
                                        "\x01"};
static void log_quoted(const char *text, size_t length) {
    fputc('"', log_file);
    for (size_t i = 0; i < length && i < 128; i++) {
        char c = text[i];
        if (c == '"' || c == '\\')
            fprintf(log_file, "\\%c", c);
        else if (c == '\n' || c == '\t')
            fputs(c == '\n' ? "\\n" : "\\t", log_file);
        else if (c < 32)
            fprintf(log_file, "\\x%02x", c);
        else
            fputc(c, log_file);
    }
    fputs(length > 128 ? "\"..." : "\"", log_file);
}
static void log_text(const char *name, const char *value) {
    log_name(name);
    if (!value)
        fputs("NULL", log_file);
    else if ((size_t)value < 4096)
        fprintf(log_file, "0x%llx <unreadable>", (unsigned long long)value);
    else
        log_quoted(value, strlen(value));
}
static const char *make_text(void) {
    static char large[2000];
    unsigned long long which = next_value() % 10;
    if (!large[0])
        memset(large, 'x', sizeof large - 1);
    return which < 7 ? log_texts[which] : which == 7 ? (const char *)0 : which == 8 ? (const char *)(size_t)48 : large;
}

static void log_Pair(const char *name, struct Pair value) {
    log_name(name);
    fprintf(log_file, "{a=%d, b=%d}", value.a, value.b);
}
static struct Pair make_Pair(void) {
    struct Pair made;
    made.a = make_int();
    made.b = make_int();
    return made;
}
static void log_Mixed(const char *name, struct Mixed value) {
    log_name(name);
    fprintf(log_file, "{n=%lld, x=%a}", (long long)value.n, value.x);
}
static struct Mixed make_Mixed(void) {
    struct Mixed made;
    made.n = make_long();
    made.x = make_double();
    return made;
}
static void log_Floats(const char *name, struct Floats value) {
    log_name(name);
    fprintf(log_file, "{x=%a, y=%a, z=%a}", (double)value.x, (double)value.y, (double)value.z);
}
static struct Floats make_Floats(void) {
    struct Floats made;
    made.x = make_float();
    made.y = make_float();
    made.z = make_float();
    return made;
}
static void log_Doubles(const char *name, struct Doubles value) {
    log_name(name);
    fprintf(log_file, "{x=%a, y=%a}", value.x, value.y);
}
static struct Doubles make_Doubles(void) {
    struct Doubles made;
    made.x = make_double();
    made.y = make_double();
    return made;
}
static void log_Small(const char *name, struct Small value) {
    log_name(name);
    fputs("{c=", log_file);
    log_character("", value.c, value.c);
    fprintf(log_file, ", s=%d}", value.s);
}
static struct Small make_Small(void) {
    struct Small made;
    made.c = make_char();
    made.s = make_short();
    return made;
}
static void log_Triple(const char *name, struct Triple value) {
    log_name(name);
    fprintf(log_file, "{a=%lld, b=%lld, c=%lld}", (long long)value.a, (long long)value.b, (long long)value.c);
}
static struct Triple make_Triple(void) {
    struct Triple made;
    made.a = make_long();
    made.b = make_long();
    made.c = make_long();
    return made;
}
static void log_FloatInt(const char *name, struct FloatInt value) {
    log_name(name);
    fprintf(log_file, "{f=%a, i=%d, g=%a}", (double)value.f, value.i, (double)value.g);
}
static struct FloatInt make_FloatInt(void) {
    struct FloatInt made;
    made.f = make_float();
    made.i = make_int();
    made.g = make_float();
    return made;
}

#ifdef __cplusplus
/* Passed by reference for its destructor. */
struct Guarded {
    int id;
    explicit Guarded(int id) : id(id) {}
    Guarded(const Guarded &other) : id(other.id) {}
    ~Guarded() {
        id = -1;
    }
};
static void log_Guarded(const char *name, const Guarded &value) {
    log_name(name);
    fprintf(log_file, "{id=%d}", value.id);
}
static Guarded make_Guarded(void) {
    return Guarded(make_int());
}
static void log_string(const char *name, const std::string &value) {
    log_name(name);
    log_quoted(value.data(), value.size());
}
static void log_string_reference(const char *name, const std::string &value) {
    log_string(name, value);
}
static std::string make_string(void) {
    unsigned long long which = next_value() % 9;
    return which < 7 ? std::string(log_texts[which]) : std::string(which == 7 ? 40 : 300, 'y');
}
static std::string make_string_reference(void) {
    return make_string();
}
static void log_int_reference(const char *name, const int &value) {
    log_int(name, value);
}
static int make_int_reference(void) {
    return make_int();
}
template <typename T> static void keep(const T &) {}
#else
#define keep(value) ((void)(value))
#endif

/* callscope-launcher.exe: starts programs with the agent, attaches it, detaches it. Links nothing but kernel32.
 *
 *   run SESSION RECORDER OFFSET FLAGS -- COMMAND LINE          exit status: the program's
 *   attach SESSION RECORDER OFFSET FLAGS -- PID|NAME           prints {"pid": N}
 *   detach -- PID|NAME
 *   symbols DIRECTORIES -- IMAGE                               answers what lies where: symbols.c
 *
 * SESSION and RECORDER are directories, OFFSET and FLAGS decimal numbers for cs_start. Paths may be those of Linux,
 * under Wine. Failures go to standard error, those of `run` as a line for people, others as {"error": ...}; the exit
 * status is then 125. */
#include "launcher.h"

#define ARGUMENT_LIMIT 8u

/* The next word of `*at`, moved to `out`; false when there is none. Quotes group as in the C runtime, without
 * backslashes: none of our own arguments ends in one. */
static bool next_word(WCHAR **at, WCHAR *out, uint32_t limit) {
    WCHAR *in = *at;
    uint32_t length = 0;
    bool quoted = false;
    while (*in == ' ' || *in == '\t')
        in++;
    if (!*in)
        return false;
    for (; *in && (quoted || (*in != ' ' && *in != '\t')); in++) {
        if (*in == '"')
            quoted = !quoted;
        else if (length + 1 < limit)
            out[length++] = *in;
    }
    out[length] = 0;
    while (*in == ' ' || *in == '\t')
        in++;
    *at = in;
    return true;
}

static int64_t to_number(const WCHAR *text) {
    bool negative = *text == '-';
    int64_t value = 0;
    for (text += negative; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (*text - '0');
    return negative ? -value : value;
}

static bool equal(const WCHAR *left, const char *right) {
    while (*left && *left == (WCHAR)*right)
        left++, right++;
    return *left == (WCHAR)*right;
}

static bool for_people;

int cs_fail(const char *what, const WCHAR *subject) {
    static char text[4096];
    static char escaped[4096];
    uint32_t out = 0;
    if (subject && !WideCharToMultiByte(CP_UTF8, 0, subject, -1, text, sizeof text / 2, NULL, NULL))
        text[0] = 0;
    const char *parts[] = {for_people ? "callscope: error: " : "{\"error\": \"", what, subject ? ": " : "",
                           subject ? text : "", for_people ? "\n" : "\"}\n"};
    for (uint32_t i = 0; i < 5; i++)
        for (const char *in = parts[i]; *in && out + 2 < sizeof escaped; in++) {
            if (i == 3 && !for_people && (*in == '"' || *in == '\\'))
                escaped[out++] = '\\';
            escaped[out++] = *in;
        }
    DWORD written;
    WriteFile(GetStdHandle(STD_ERROR_HANDLE), escaped, out, &written, NULL);
    return CS_FAILED;
}

int cs_fail_system(const char *what, const WCHAR *subject) {
    static char text[256];
    DWORD error = GetLastError(), divisor = 1000000000;
    uint32_t at = 0;
    for (; what[at] && at < sizeof text - 32; at++)
        text[at] = what[at];
    for (const char *more = " (Windows error "; *more; more++)
        text[at++] = *more;
    while (divisor > 1 && error < divisor)
        divisor /= 10;
    for (; divisor; divisor /= 10)
        text[at++] = (char)('0' + error / divisor % 10);
    text[at++] = ')';
    text[at] = 0;
    return cs_fail(text, subject);
}

static int dispatch(void) {
    static WCHAR words[ARGUMENT_LIMIT][4096];
    WCHAR *rest = GetCommandLineW();
    uint32_t count = 0;
    bool ended = false;
    next_word(&rest, words[0], 4096); /* this program */
    while (count < ARGUMENT_LIMIT && !ended && next_word(&rest, words[count], 4096))
        ended = equal(words[count++], "--");
    static struct cs_start start;
    for_people = equal(words[0], "run");
    if (!ended || !*rest)
        return cs_fail("wrong arguments", NULL);
    if (count >= 6) {
        start.clock_offset_ns = to_number(words[3]);
        start.flags = (uint32_t)to_number(words[4]);
        if (!WideCharToMultiByte(CP_UTF8, 0, words[1], -1, start.session, sizeof start.session, NULL, NULL) ||
            !WideCharToMultiByte(CP_UTF8, 0, words[2], -1, start.recorder, sizeof start.recorder, NULL, NULL))
            return cs_fail("a path is too long", NULL);
    }
    if (equal(words[0], "run") && count == 6) {
        WCHAR *arguments = rest;
        next_word(&arguments, words[6], 4096);
        return cs_run(&start, words[6], rest, arguments);
    }
    if (equal(words[0], "attach") && count == 6)
        return cs_attach(&start, rest);
    if (equal(words[0], "symbols") && count == 3)
        return cs_symbols(words[1], rest);
    if (equal(words[0], "detach") && count == 2)
        return cs_detach(rest);
    return cs_fail("wrong arguments", NULL);
}

void mainCRTStartup(void) {
    ExitProcess((UINT)dispatch());
}

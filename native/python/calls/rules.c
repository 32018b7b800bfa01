/* Which functions the user chose: globs in the environment, or from who attached; judged once for each function. */
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "interpreter.h"

#define VARIABLE "CALLSCOPE_PYTHON_RULES"

/* A line of the variable: '+' or '-', the module's glob ("" for any), a tab, the name's glob. */
struct rule {
    const char *module, *name;
    bool is_exclude;
};

static struct rule *rules;
static unsigned rule_count;
static bool is_read, has_includes;

void cs_python_choose(const char *text) {
    static char *copy;
    free(copy);
    free(rules);
    copy = text && *text ? strdup(text) : NULL;
    rule_count = 0;
    has_includes = false;
    is_read = true;
    unsigned lines = 1;
    for (const char *at = copy; at && *at; at++)
        lines += *at == '\n';
    rules = copy ? calloc(lines, sizeof *rules) : NULL;
    for (char *line = copy, *next; rules && line; line = next) {
        if ((next = strchr(line, '\n')))
            *next++ = 0;
        char *tab = strchr(line, '\t');
        if (!tab || (*line != '+' && *line != '-'))
            continue;
        *tab = 0;
        rules[rule_count++] = (struct rule){line + 1, tab + 1, *line == '-'};
        has_includes |= *line == '+';
    }
}

static bool fits(const char *glob, const char *text) {
    return !strcmp(glob, text) || fnmatch(glob, text, 0) == 0;
}

static const char *last_part(const char *text, char mark) {
    const char *at = strrchr(text, mark);
    return at ? at + 1 : text;
}

static bool matches(const struct rule *rule, const struct callscope_script *script) {
    const char *file = last_part(script->file, '/');
    bool is_module = !*rule->module || fits(rule->module, script->module) || (*file && fits(rule->module, file)) ||
                     (*file && fits(rule->module, script->file));
    return is_module && (fits(rule->name, script->name) || fits(rule->name, last_part(script->name, '.')));
}

bool cs_python_is_chosen(const struct callscope_script *script) {
    if (!is_read)
        cs_python_choose(getenv(VARIABLE));
    bool is_chosen = !has_includes;
    for (unsigned i = 0; i < rule_count; i++)
        if (matches(&rules[i], script)) {
            if (rules[i].is_exclude)
                return false;
            is_chosen = true;
        }
    return is_chosen;
}

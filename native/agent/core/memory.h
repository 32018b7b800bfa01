/* Plain memory and text helpers: the agent links no C library. */
#ifndef CALLSCOPE_AGENT_MEMORY_H
#define CALLSCOPE_AGENT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The four names a compiler may call by itself. */
void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int byte, size_t bytes);
int memcmp(const void *left, const void *right, size_t bytes);

size_t cs_text_length(const char *text);
bool cs_text_equal(const char *left, const char *right);

/* The rest of `text` after `prefix`, or NULL when it does not start with it. */
const char *cs_text_after(const char *text, const char *prefix);

/* Append `text` at `*at` of `buffer` (`bytes` in all), always leaving it terminated; false when it was cut. */
bool cs_text_append(char *buffer, size_t bytes, size_t *at, const char *text);

#endif

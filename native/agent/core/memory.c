/* Plain memory and text helpers. String instructions are fast for blocks and leave no loop to be taken for a call. */
#include "memory.h"

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
    return start;
}

void *memmove(void *to, const void *from, size_t bytes) {
    uint8_t *target = to;
    const uint8_t *source = from;
    if (target <= source || target >= source + bytes)
        return memcpy(to, from, bytes);
    while (bytes--)
        target[bytes] = source[bytes];
    return to;
}

void *memset(void *to, int byte, size_t bytes) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(byte) : "memory");
    return start;
}

int memcmp(const void *left, const void *right, size_t bytes) {
    const uint8_t *a = left, *b = right;
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

size_t cs_text_length(const char *text) {
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

bool cs_text_equal(const char *left, const char *right) {
    while (*left && *left == *right)
        left++, right++;
    return *left == *right;
}

const char *cs_text_after(const char *text, const char *prefix) {
    while (*prefix)
        if (*text++ != *prefix++)
            return NULL;
    return text;
}

bool cs_text_append(char *buffer, size_t bytes, size_t *at, const char *text) {
    while (*text && *at + 1 < bytes)
        buffer[(*at)++] = *text++;
    buffer[*at] = 0;
    return !*text;
}

#include "exception.h"

#include "callscope/records.h"

#include "memory.h"
#include "system.h"

#define PAGE 4096ull
#define HIGHEST (1ull << 47)
#define CLASS_GNU 0x474e5543432b2bull /* "GNUCC++", of libstdc++; the last byte says which kind */
#define CLASS_LLVM 0x434c4e47432b2bull
#define OBJECT_BYTES 256u
#define TEXT_BYTES 256u
#define TYPE_BYTES 96u
#define TYPE_LIMIT 12u
#define MOST_BASES 5u
#define WORDS_FOLLOWED 8u /* of the object, to what they point to */

/* The end of __cxa_exception, from its type on. */
struct header {
    uint64_t type, destructor, unexpected, terminate, next;
    int32_t handler_count, handler_switch;
    uint64_t actions, language_data, catch_place, adjusted;
    uint64_t class, cleanup, private[CS_UNWINDER_WORDS];
};
_Static_assert(offsetof(struct header, class) == CS_THROWN_OFFSET, "as the ABI has it");
#define OBJECT_OFFSET (sizeof(struct header))

/* Copy what can be read from `address` on; how much that was. */
static uint32_t copy(void *to, uint64_t address, uint32_t bytes) {
    uint32_t done = 0;
    while (done < bytes && address + done < HIGHEST && cs_system_readable((address + done) & ~7ull)) {
        uint64_t rest = PAGE - (address + done) % PAGE;
        uint32_t count = rest < bytes - done ? (uint32_t)rest : bytes - done;
        memcpy((uint8_t *)to + done, (const void *)(address + done), count);
        done += count;
    }
    return done;
}

static uint64_t word(uint64_t address) {
    uint64_t value = 0;
    return copy(&value, address, sizeof value) == sizeof value ? value : 0;
}

/* Add a piece; its bytes, 0 when nothing could be read or there is no room. */
static uint32_t add(struct cs_exception *out, uint64_t address, uint32_t bytes) {
    struct cs_crash_piece piece = {address, 0};
    if (out->bytes + sizeof piece + bytes > sizeof out->pieces)
        return 0;
    uint8_t *at = (uint8_t *)out->pieces + out->bytes;
    piece.bytes = copy(at + sizeof piece, address, bytes) & ~7u;
    if (!piece.bytes)
        return 0;
    memcpy(at, &piece, sizeof piece);
    out->bytes += (uint32_t)(sizeof piece + piece.bytes);
    return (uint32_t)piece.bytes;
}

/* Whether a type_info may lie there: its name begins like one. */
static bool is_type(uint64_t type) {
    uint64_t name = type > PAGE && type % 8 == 0 ? word(type + 8) : 0;
    uint8_t first = 0;
    return name > PAGE && copy(&first, name, 1) && first > ' ' && first < 0x7f;
}

/* A type with its name, and its bases: the third word is the only one, or says in its high half how many stand in every
 * other word from the fourth on. */
static void add_types(struct cs_exception *out, uint64_t type) {
    uint64_t types[TYPE_LIMIT] = {type};
    for (uint32_t i = 0, count = 1; i < count; i++) {
        uint64_t words[TYPE_BYTES / 8] = {0};
        if (!is_type(types[i]) || !add(out, types[i], TYPE_BYTES))
            continue;
        copy(words, types[i], TYPE_BYTES);
        add(out, words[1], TEXT_BYTES);
        bool alone = is_type(words[2]);
        uint64_t bases = alone ? 1 : words[2] >> 32;
        for (uint32_t k = 0; k < bases && k < MOST_BASES && count < TYPE_LIMIT; k++)
            types[count++] = words[alone ? 2 : 3 + 2 * k];
    }
}

static bool is_class(uint64_t class) {
    return class >> 8 == CLASS_GNU || class >> 8 == CLASS_LLVM;
}

void cs_exception_copy(struct cs_exception *out, uint64_t header) {
    struct header found;
    out->header = 0;
    out->bytes = 0;
    if (copy(&found, header - CS_THROWN_OFFSET, sizeof found) < sizeof found || !is_class(found.class))
        return;
    if (found.class & 1) { /* of std::rethrow_exception: it leads to the object that was thrown */
        uint64_t object = found.class >> 8 == CLASS_GNU ? found.type : word(header - CS_THROWN_OFFSET - 8);
        header = object - (OBJECT_OFFSET - CS_THROWN_OFFSET);
        if (copy(&found, header - CS_THROWN_OFFSET, sizeof found) < sizeof found || !is_class(found.class))
            return;
    }
    out->header = header;
    uint64_t object[WORDS_FOLLOWED] = {0};
    add(out, header - CS_THROWN_OFFSET, OBJECT_OFFSET + OBJECT_BYTES);
    add_types(out, found.type);
    copy(object, header - CS_THROWN_OFFSET + OBJECT_OFFSET, sizeof object);
    for (uint32_t i = 0; i < WORDS_FOLLOWED; i++)
        if (object[i] > PAGE)
            add(out, object[i], TEXT_BYTES);
}

/* What a pointer to a __cxa_exception that has a handler leads to: its _Unwind_Exception. 0 for all others. That of
 * libc++abi has two words before its type. */
static uint64_t header_at(uint64_t value) {
    static const uint32_t before_type[] = {0, 16};
    struct header found;
    if (value % 16 || value < PAGE || value >= HIGHEST)
        return 0;
    for (uint32_t i = 0; i < sizeof before_type / sizeof *before_type; i++)
        if (copy(&found, value + before_type[i], sizeof found) == sizeof found && is_class(found.class) &&
            found.handler_count)
            return value + before_type[i] + CS_THROWN_OFFSET;
    return 0;
}

uint64_t cs_exception_among(uint64_t start, uint32_t bytes) {
    uint64_t header = 0, words[64];
    for (uint32_t at = 0; at < bytes && !header; at += sizeof words) {
        uint32_t wanted = bytes - at < sizeof words ? bytes - at : (uint32_t)sizeof words;
        uint32_t count = copy(words, start + at, wanted) / 8;
        for (uint32_t i = 0; i < count && !header; i++)
            header = header_at(words[i]);
    }
    return header;
}

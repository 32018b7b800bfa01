/* The words that led from frame to frame, and whether they are still there. */
#include "remembered.h"

#include "reach.h"

/* Bits in which `count` words are not what they were. */
static uint64_t changed_words(const struct cs_loaded_word *words, uint64_t count) {
    uint64_t changed = 0, more = 0, i = 0;
    for (; i + 4 <= count; i += 4) {
        changed |= cs_word_at(words[i].address) ^ words[i].value;
        more |= cs_word_at(words[i + 1].address) ^ words[i + 1].value;
        changed |= cs_word_at(words[i + 2].address) ^ words[i + 2].value;
        more |= cs_word_at(words[i + 3].address) ^ words[i + 3].value;
    }
    for (; i < count; i++)
        changed |= cs_word_at(words[i].address) ^ words[i].value;
    return changed | more;
}

/* The same of pairs, two at a time. The vector registers are the traced program's, so they are kept here. */
static uint64_t changed_pairs(const struct cs_loaded_pair *pairs, uint64_t count) {
    uint64_t kept[8], changed[2] = {0, 0}, first, second;
    uint64_t twos = count / 2;
    if (twos)
        __asm__ volatile("movdqu %%xmm0, (%[kept])\n\t"
                         "movdqu %%xmm1, 16(%[kept])\n\t"
                         "movdqu %%xmm2, 32(%[kept])\n\t"
                         "movdqu %%xmm3, 48(%[kept])\n\t"
                         "pxor %%xmm2, %%xmm2\n\t"
                         "pxor %%xmm3, %%xmm3\n"
                         "1:\n\t"
                         "mov (%[at]), %[first]\n\t"
                         "mov 32(%[at]), %[second]\n\t"
                         "movdqu (%[first]), %%xmm0\n\t"
                         "movdqu (%[second]), %%xmm1\n\t"
                         "pxor 16(%[at]), %%xmm0\n\t"
                         "pxor 48(%[at]), %%xmm1\n\t"
                         "por %%xmm0, %%xmm2\n\t"
                         "por %%xmm1, %%xmm3\n\t"
                         "add $64, %[at]\n\t"
                         "dec %[twos]\n\t"
                         "jnz 1b\n\t"
                         "por %%xmm3, %%xmm2\n\t"
                         "movdqu %%xmm2, (%[changed])\n\t"
                         "movdqu (%[kept]), %%xmm0\n\t"
                         "movdqu 16(%[kept]), %%xmm1\n\t"
                         "movdqu 32(%[kept]), %%xmm2\n\t"
                         "movdqu 48(%[kept]), %%xmm3"
                         : [at] "+r"(pairs), [twos] "+r"(twos), [first] "=&r"(first), [second] "=&r"(second)
                         : [kept] "r"(kept), [changed] "r"(changed)
                         : "memory", "cc");
    if (count % 2) {
        changed[0] |= cs_word_at(pairs->address) ^ pairs->values[0];
        changed[1] |= cs_word_at(pairs->address + 8) ^ pairs->values[1];
    }
    return changed[0] | changed[1];
}

bool cs_still_there(const struct cs_remembered *last, uint32_t frames) {
    if (!frames)
        return true;
    const struct cs_walked *frame = &last->frames[frames - 1];
    return !(changed_words(last->words, frame->words) | changed_pairs(last->pairs, frame->pairs));
}

uint32_t cs_first_changed(const struct cs_remembered *last) {
    const struct cs_walked *inner = &last->frames[last->count - 1];
    uint32_t word = 0, pair = 0, at = 0;
    while (word < inner->words && cs_word_at(last->words[word].address) == last->words[word].value)
        word++;
    while (pair < inner->pairs && cs_word_at(last->pairs[pair].address) == last->pairs[pair].values[0] &&
           cs_word_at(last->pairs[pair].address + 8) == last->pairs[pair].values[1])
        pair++;
    while (at + 1 < last->count && last->frames[at].words <= word && last->frames[at].pairs <= pair)
        at++;
    return at;
}

void cs_remember(struct cs_remembered *last, uint32_t at, const struct cs_walked *walked) {
    const struct cs_walked *outer = at ? &last->frames[at - 1] : NULL;
    struct cs_walked *frame = &last->frames[at];
    uint32_t words = outer ? outer->words : 0, pairs = outer ? outer->pairs : 0;
    *frame = *walked;
    frame->needs_bp = frame->from_bp || (!frame->loads_bp && outer && outer->needs_bp);
    if (frame->needs_bp && frame->saved == frame->sp - 16) {
        last->pairs[pairs++] = (struct cs_loaded_pair){frame->saved, 0, {frame->bp, frame->rip}};
    } else {
        last->words[words++] = (struct cs_loaded_word){frame->sp - 8, frame->rip};
        if (frame->needs_bp && frame->saved)
            last->words[words++] = (struct cs_loaded_word){frame->saved, frame->bp};
    }
    frame->words = words;
    frame->pairs = pairs;
}

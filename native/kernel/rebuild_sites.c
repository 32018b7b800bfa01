/* Call sites: the low half of a return address and a time -> module, function around it, and how its caller's stack
 * pointer follows. Answers are remembered until a module comes or goes there. */
#include <stdlib.h>
#include <string.h>

#include "rebuild_state.h"

enum { FIRST_SITES = 256 };

int cs_sites_start(struct cs_rebuild *s) {
    s->site_capacity = FIRST_SITES;
    s->sites = malloc(FIRST_SITES * sizeof *s->sites);
    s->site_states = malloc(FIRST_SITES * sizeof *s->site_states);
    s->slot_mask = FIRST_SITES * 4 - 1;
    s->site_slots = calloc(s->slot_mask + 1, sizeof *s->site_slots);
    return s->sites && s->site_states && s->site_slots ? CS_REBUILD_OK : CS_REBUILD_NO_MEMORY;
}

static int grow_slots(struct cs_rebuild *s) {
    uint64_t mask = s->slot_mask * 2 + 1;
    struct cs_site_slot *slots = calloc(mask + 1, sizeof *slots);
    if (slots == NULL) {
        return CS_REBUILD_NO_MEMORY;
    }
    for (uint64_t i = 0; i <= s->slot_mask; i++) {
        if (s->site_slots[i].site != 0) {
            uint64_t at = cs_mix(s->site_slots[i].return_address) & mask;
            while (slots[at].site != 0) {
                at = (at + 1) & mask;
            }
            slots[at] = s->site_slots[i];
        }
    }
    free(s->site_slots);
    s->site_slots = slots;
    s->slot_mask = mask;
    return CS_REBUILD_OK;
}

/* The last function that begins at or before rva and reaches beyond it, or null. */
static const struct cs_function *find_function(const struct cs_image_tables *image, uint32_t rva) {
    uint32_t low = 0, high = image->function_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (image->functions[middle].rva <= rva) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const struct cs_function *function = low != 0 ? &image->functions[low - 1] : NULL;
    return function && rva - function->rva < function->bytes ? function : NULL;
}

static uint32_t find_rule(const struct cs_image_tables *image, uint32_t rva) {
    uint32_t low = 0, high = image->row_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (image->rows[middle].rva <= rva) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low != 0 ? image->rows[low - 1].rule : CS_CFA_UNKNOWN;
}

/* What is known of the code before a return address. The call instruction, not what follows it, is asked for: a call
 * that never returns may be its function's last instruction. */
static void describe(const struct cs_rebuild *s, const struct cs_module_span *span, struct cs_site *site,
                     struct cs_site_state *state) {
    site->module = (int32_t)span->module;
    site->rva = site->return_address - span->low + span->rva;
    if (span->image < 0 || (uint64_t)span->image >= s->in.image_count) {
        return;
    }
    const struct cs_image_tables *image = &s->in.images[span->image];
    const struct cs_function *function = find_function(image, site->rva);
    if (function != NULL && function->rva == site->rva) {
        state->starts = image->id_base + (uint32_t)(function - image->functions);
    }
    function = find_function(image, site->rva - 1);
    if (function == NULL) {
        return;
    }
    uint32_t own = (uint32_t)(function - image->functions);
    uint32_t owner = function->owner < image->function_count ? function->owner : own;
    site->function = state->function = image->id_base + owner;
    state->is_part = function->flags & CS_FUNCTION_PART && owner == own;
    state->is_signal = (function->flags & CS_FUNCTION_SIGNAL) != 0;
    uint32_t rule = find_rule(image, site->rva - 1), offset = rule >> 2;
    if ((rule & 3) == CS_CFA_RSP && offset >= 8 && offset <= CS_REACH && !state->is_signal) {
        state->kind = CS_SITE_RSP;
        state->offset = offset;
    } else if ((rule & 3) == CS_CFA_RBP) {
        state->kind = CS_SITE_RBP;
    }
}

/* The site of this address in this module: found among those of the same low half, `first` on, or made. Index + 1; 0
 * when there is no memory. */
static uint32_t site_in(struct cs_rebuild *s, uint32_t return_address, const struct cs_module_span *span,
                        uint32_t first) {
    int32_t module = span ? (int32_t)span->module : -1;
    uint32_t last = 0, steps = 0;
    for (uint32_t at = first; at != 0; at = s->site_states[at - 1].same) {
        if (s->sites[at - 1].module == module || ++steps > CS_SEARCH_LIMIT) {
            return at;
        }
        last = at;
    }
    if (s->site_count == s->site_capacity) {
        uint64_t capacity = s->site_capacity * 2;
        struct cs_site *sites = realloc(s->sites, capacity * sizeof *sites);
        s->sites = sites ? sites : s->sites;
        struct cs_site_state *states = realloc(s->site_states, capacity * sizeof *states);
        s->site_states = states ? states : s->site_states;
        if (sites == NULL || states == NULL) {
            return 0;
        }
        s->site_capacity = capacity;
    }
    struct cs_site *site = &s->sites[s->site_count];
    struct cs_site_state *state = &s->site_states[s->site_count];
    *site = (struct cs_site){.return_address = return_address, .module = module};
    memset(state, 0, sizeof *state);
    if (span) {
        describe(s, span, site, state);
    }
    s->site_count++;
    if (last != 0) {
        s->site_states[last - 1].same = (uint32_t)s->site_count;
    }
    return (uint32_t)s->site_count;
}

/* The modules at this address now, and until when that holds. When there is none yet, the next one that comes: a load
 * is recorded a little after the loader made it, and clocks of processors differ. */
static uint32_t find_modules(const struct cs_rebuild *s, uint32_t address, const struct cs_module_span **found,
                             uint64_t *until) {
    uint64_t low = 0, high = s->in.module_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (s->in.modules[middle].low <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    uint32_t count = 0;
    const struct cs_module_span *next = NULL;
    *until = UINT64_MAX;
    for (int steps = 0; low > 0 && steps < CS_SEARCH_LIMIT; steps++) {
        const struct cs_module_span *span = &s->in.modules[--low];
        if (span->reach < address) {
            break;
        }
        if (address - span->low >= span->bytes || span->unload_tsc <= s->now) {
            continue;
        }
        uint64_t change = span->load_tsc <= s->now ? span->unload_tsc : span->load_tsc;
        *until = change < *until ? change : *until;
        if (span->load_tsc > s->now) {
            next = next && next->load_tsc <= span->load_tsc ? next : span;
        } else if (count < CS_ALIAS_LIMIT) {
            found[count++] = span;
        }
    }
    if (count == 0 && next) {
        found[count++] = next;
    }
    return count;
}

static uint32_t overflow_site(struct cs_rebuild *s) {
    uint32_t site = site_in(s, 0, NULL, s->site_overflow);
    s->site_overflow = site;
    return site != 0 ? site - 1 : CS_NO_NODE;
}

uint32_t cs_sites_resolve(struct cs_rebuild *s, uint32_t return_address) {
    if (s->slot_count * 2 > s->slot_mask && grow_slots(s) != CS_REBUILD_OK) {
        return CS_NO_NODE;
    }
    uint64_t at = cs_mix(return_address) & s->slot_mask;
    while (s->site_slots[at].site != 0 && s->site_slots[at].return_address != return_address) {
        at = (at + 1) & s->slot_mask;
    }
    if (s->site_count >= CS_SITE_LIMIT && s->site_slots[at].site == 0) {
        return overflow_site(s);
    }
    uint32_t first = s->site_slots[at].site;
    const struct cs_module_span *found[CS_ALIAS_LIMIT];
    uint64_t until;
    uint32_t count = find_modules(s, return_address, found, &until);
    uint32_t sites[CS_ALIAS_LIMIT], chosen = 0;
    for (uint32_t i = 0; i < (count ? count : 1); i++) {
        sites[i] = site_in(s, return_address, count ? found[i] : NULL, first);
        if (sites[i] == 0) {
            return CS_NO_NODE;
        }
        first = first ? first : sites[i];
        if (s->site_states[sites[chosen] - 1].function == 0 && s->site_states[sites[i] - 1].function != 0) {
            chosen = i;
        }
    }
    /* The chosen one first, then the others. */
    uint32_t also = 0;
    for (uint32_t i = count; i-- > 0;) {
        if (i != chosen) {
            s->site_states[sites[i] - 1].also = also;
            also = sites[i];
        }
    }
    s->site_states[sites[chosen] - 1].also = also;
    s->slot_count += s->site_slots[at].site == 0;
    s->site_slots[at] = (struct cs_site_slot){return_address, first, sites[chosen], 0, until};
    return sites[chosen] - 1;
}

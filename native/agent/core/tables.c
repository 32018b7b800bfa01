/* The ranges of addresses that tables tell of, sorted, in two copies: one is looked at while the other is changed, so
 * that a walk needs no lock and never waits. */
#include "tables.h"

#include "memory.h"
#include "modules.h"
#include "system.h"

#define RANGES (2 * CS_MODULE_LIMIT)

struct range {
    uint64_t low, high;
    const struct cs_unwind_row *rows;
    const struct cs_unwind_rule *rules;
    uint32_t count;
};

static struct {
    struct range ranges[RANGES];
    uint32_t count;
} copies[2];
uint64_t cs_unwind_version; /* its lowest bit: the copy in use */

static bool rows_are_good(const struct cs_unwind_row *rows, uint32_t count, uint32_t rules) {
    for (uint32_t i = 0; i < count; i++)
        if (rows[i].rule >= rules || (i ? rows[i].rva <= rows[i - 1].rva : rows[i].rva != 0))
            return false;
    return true;
}

bool cs_unwind_open(struct cs_unwind_table *table, const uint8_t *file, uint64_t bytes, uint64_t span,
                    const uint8_t *build_id, uint32_t build_id_bytes) {
    const struct cs_unwind_header *header = (const struct cs_unwind_header *)file;
    if (bytes < sizeof *header || header->magic != CS_UNWIND_MAGIC || header->version != CS_UNWIND_VERSION ||
        header->header_size < sizeof *header || ((header->image_span + 4095) & ~4095ull) != span ||
        header->build_id_bytes > 32 ||
        (build_id_bytes && header->build_id_bytes &&
         (header->build_id_bytes != build_id_bytes || memcmp(header->build_id, build_id, build_id_bytes))))
        return false;
    uint64_t rows = (uint64_t)header->row_count + header->region_row_count;
    if ((header->rule_offset | header->row_offset) % 4 || header->rule_offset > bytes || header->row_offset > bytes ||
        header->rule_count > (bytes - header->rule_offset) / sizeof(struct cs_unwind_rule) ||
        rows > (bytes - header->row_offset) / sizeof(struct cs_unwind_row) || !header->row_count)
        return false;
    table->header = header;
    table->rules = (const struct cs_unwind_rule *)(file + header->rule_offset);
    table->rows = (const struct cs_unwind_row *)(file + header->row_offset);
    table->region_rows = table->rows + header->row_count;
    return rows_are_good(table->rows, header->row_count, header->rule_count) &&
           rows_are_good(table->region_rows, header->region_row_count, header->rule_count);
}

/* The number of ranges that begin at or below `address`. */
static uint32_t ranges_below(uint32_t copy, uint64_t address) {
    uint32_t low = 0, high = copies[copy].count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (copies[copy].ranges[middle].low <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct cs_unwind_rule *cs_unwind_find(uint64_t address) {
    struct range range;
    uint64_t before;
    do {
        before = cs_unwind_generation();
        uint32_t copy = before & 1, count = ranges_below(copy, address);
        range = (struct range){0};
        if (count && count <= RANGES)
            range = copies[copy].ranges[count - 1];
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (cs_unwind_generation() != before);
    uint64_t rva = address - range.low;
    if (address < range.low || address >= range.high || !range.count)
        return NULL;
    uint32_t low = 0, high = range.count;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (range.rows[middle].rva <= rva)
            low = middle;
        else
            high = middle;
    }
    return &range.rules[range.rows[low].rule];
}

/* Begin to change the copy that is not in use; its number. */
static uint32_t begin_change(void) {
    uint32_t from = cs_unwind_version & 1, to = !from;
    copies[to].count = 0;
    memcpy(copies[to].ranges, copies[from].ranges, copies[from].count * sizeof(struct range));
    copies[to].count = copies[from].count;
    return to;
}

static void end_change(void) {
    __atomic_fetch_add(&cs_unwind_version, 1, __ATOMIC_RELEASE);
    cs_unwind_forget();
}

static void drop(uint32_t copy, uint64_t low, uint64_t high) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < copies[copy].count; i++) {
        const struct range *range = &copies[copy].ranges[i];
        if (range->low >= high || range->high <= low)
            copies[copy].ranges[kept++] = *range;
    }
    copies[copy].count = kept;
}

static bool insert(uint32_t copy, struct range range) {
    drop(copy, range.low, range.high);
    if (copies[copy].count == RANGES)
        return false;
    uint32_t at = ranges_below(copy, range.low);
    memmove(&copies[copy].ranges[at + 1], &copies[copy].ranges[at], (copies[copy].count - at) * sizeof(struct range));
    copies[copy].ranges[at] = range;
    copies[copy].count++;
    return true;
}

bool cs_unwind_add(const struct cs_unwind_table *table, uint64_t base, uint64_t span, uint64_t region) {
    const struct cs_unwind_header *header = table->header;
    uint32_t copy = begin_change();
    bool done = insert(copy, (struct range){base, base + span, table->rows, table->rules, header->row_count});
    if (region && header->region_row_count)
        done &= insert(copy, (struct range){region, region + header->region_bytes, table->region_rows, table->rules,
                                            header->region_row_count});
    end_change();
    return done;
}

void cs_unwind_remove(uint64_t base, uint64_t region) {
    uint32_t copy = begin_change();
    drop(copy, base, base + 1);
    if (region)
        drop(copy, region, region + 1);
    end_change();
}

/* Which memory around a stack can be read. */
#include "reach.h"

#include "system.h"

bool cs_explore(struct cs_walk *walk, uint64_t address) {
    uint64_t page = address & ~(CS_PAGE - 1);
    if (address % 8 || address >= CS_ADDRESS_END)
        return false;
    if (address >= walk->high && address - walk->high < CS_FARTHEST) {
        for (; walk->high <= address; walk->high += CS_PAGE)
            if (!cs_system_readable(walk->high))
                return false;
        return true;
    }
    if (address < walk->low && walk->low - address < CS_FARTHEST) {
        for (; walk->low > address; walk->low -= CS_PAGE)
            if (!cs_system_readable(walk->low - CS_PAGE))
                return false;
        return true;
    }
    if (!cs_system_readable(page))
        return false;
    walk->low = page;
    walk->high = page + CS_PAGE;
    return true;
}

/* What instrumented programs tell by themselves: calls of functions that the compiler has inlined. */
#include "agent.h"

uint32_t cs_hooks;

void cs_hooks_start(void) {
    bool asks = cs_session.features & (CS_FEATURE_NO_CLOCK | CS_FEATURE_COARSE_CLOCK) || cs_session.asks;
    cs_hooks = asks ? CS_HOOKS_ASK : CS_HOOKS_DIRECT;
}

void cs_hooks_stop(void) {
    cs_hooks = CS_HOOKS_OFF;
}

void cs_hook(uint64_t function, uint64_t sp, uint64_t return_address, uint32_t type) {
    if (cs_session.asks && !cs_depth_inside(sp))
        return;
    uint32_t time, *slot = cs_reserve(sp, 8 + sizeof(struct cs_inline_event), &time);
    __atomic_store_n(&slot[1], (8 + sizeof(struct cs_inline_event)) / 8 << 3 | CS_EVENT_EXTENDED, __ATOMIC_RELEASE);
    slot[0] = type;
    slot[2] = time;
    slot[3] = (uint32_t)sp;
    slot[5] = (uint32_t)return_address;
    slot[4] = (uint32_t)function;
}

/* Where a thread may be stopped, unwind information tells of prologues and bodies, not of epilogues. Windows' unwinder
 * executes what is left of one (Microsoft, "x64 exception handling", unwind procedure), and so does this; but jumps are
 * followed, as one may be a patch that leads to the rest. */
#include "../core/memory.h"
#include "../core/system.h"
#include "../core/tables.h"
#include "windows_agent.h"

#define MOST_STEPS 24
#define MOST_WORDS 8
#define LONGEST_BARE 128 /* bytes of a function without unwind information that calls nothing */
#define FLAGS 16         /* in place of a register */
#define LONGEST 6        /* bytes of an instruction that is looked at */

enum step { POP, JUMP, NOTHING, RETURN, OTHER };

struct instruction {
    enum step step;
    uint32_t bytes, popped; /* register by the number that encodes it */
    int32_t distance;       /* of a jump, from its end */
};

size_t cs_code_peek(uint8_t *to, uint64_t address, size_t bytes) {
    if (!cs_unwind_find(address) || !cs_unwind_find(address + bytes - 1))
        return cs_system_peek(to, address, bytes);
    memcpy(to, (const void *)address, bytes); /* of an image, in which the thread is */
    return bytes;
}

/* Instructions by their bytes: Intel SDM volume 2; what an epilogue may hold, behind its first instruction. */
static struct instruction read_instruction(const uint8_t code[LONGEST]) {
    int32_t distance;
    memcpy(&distance, code + 1, sizeof distance);
    if (code[0] == 0xc3 || code[0] == 0xc2 || ((code[0] == 0xf3 || code[0] == 0xf2) && code[1] == 0xc3))
        return (struct instruction){.step = RETURN};
    if ((code[0] == 0xff && code[1] == 0x25) ||
        ((code[0] & 0xf8) == 0x48 && code[1] == 0xff && (code[2] & 0x38) == 0x20))
        return (struct instruction){.step = RETURN}; /* a tail jump: rex.w marks one through a register */
    if ((code[0] & 0xf8) == 0x58)
        return (struct instruction){POP, 1, code[0] & 7u, 0};
    if ((code[0] & 0xf1) == 0x41 && code[0] < 0x50 && (code[1] & 0xf8) == 0x58)
        return (struct instruction){POP, 2, (code[1] & 7u) + 8, 0};
    if (code[0] == 0x9d)
        return (struct instruction){POP, 1, FLAGS, 0};
    if (code[0] == 0xe9)
        return (struct instruction){JUMP, 5, 0, distance};
    if (code[0] == 0xeb)
        return (struct instruction){JUMP, 2, 0, (int8_t)code[1]};
    if (code[0] == 0x90)
        return (struct instruction){.step = NOTHING, .bytes = 1};
    return (struct instruction){.step = OTHER};
}

static bool pop(struct cs_registers *registers, uint32_t number) {
    static const uint8_t dwarf[] = {0, 2, 1, 3, 7, 6, 4, 5}; /* System V ABI for x86-64, figure 3.36 */
    uint64_t *sp = &registers->at[CS_RSP];
    if (!cs_system_readable(*sp))
        return false;
    uint64_t value = *(const uint64_t *)*sp;
    *sp += sizeof value;
    if (number != FLAGS)
        registers->at[number < sizeof dwarf ? dwarf[number] : number] = value;
    return true;
}

/* Code without unwind information has nothing on the stack but its return address, says the convention; mingw's probe
 * of the stack (___chkstk_ms) has, so what is behind a call of it is looked for. */
static void find_caller(struct cs_registers *registers) {
    uint64_t sp = registers->at[CS_RSP];
    for (uint64_t at = sp; at < sp + 8 * MOST_WORDS && !(at % 8) && cs_system_readable(at); at += 8) {
        uint64_t back = *(const uint64_t *)at;
        uint8_t code[5] = {0};
        int32_t distance;
        if (!cs_unwind_find(back - 1) || cs_code_peek(code, back - sizeof code, sizeof code) != sizeof code)
            continue;
        memcpy(&distance, code + 1, sizeof distance);
        if (code[0] != 0xe8 || registers->rip - (back + (uint64_t)(int64_t)distance) >= LONGEST_BARE)
            continue;
        registers->at[CS_RSP] = at;
        registers->place = 0;
        return;
    }
}

void cs_epilogue_finish(struct cs_registers *registers) {
    const struct cs_unwind_rule *rule = cs_unwind_find(registers->rip);
    if (rule && rule->kind == CS_UNWIND_NONE) {
        find_caller(registers);
        return;
    }
    struct cs_registers now = *registers;
    uint64_t at = now.rip;
    for (uint32_t i = 0; i < MOST_STEPS; i++) {
        uint8_t code[LONGEST] = {0};
        cs_code_peek(code, at, sizeof code);
        struct instruction instruction = read_instruction(code);
        if (instruction.step == RETURN) {
            now.place = 0; /* no rule: there is nothing but the return address */
            *registers = now;
        }
        if (instruction.step == RETURN || instruction.step == OTHER ||
            (instruction.step == POP && !pop(&now, instruction.popped)))
            return;
        at += instruction.bytes + (uint64_t)(int64_t)instruction.distance;
        if (instruction.step == JUMP && cs_unwind_find(at)) {
            now.place = at;
            *registers = now;
        }
    }
}

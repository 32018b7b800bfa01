/* System calls without a C library: a result in -4095..-1 is a negated errno. */
#ifndef CALLSCOPE_AGENT_SYSCALL_H
#define CALLSCOPE_AGENT_SYSCALL_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18 /* Linux 4.14 */
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000 /* Linux 4.17; before, the address is a hint */
#endif

static inline long cs_call6(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long cs_call3(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static inline long cs_call4(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}

static inline bool cs_failed(long result) {
    return (unsigned long)result > -4096ul;
}

/* NULL when the system refuses. */
static inline void *cs_map(void *address, uint64_t bytes, int protection, int flags, int descriptor, uint64_t offset) {
    long result = cs_call6(SYS_mmap, (long)address, (long)bytes, protection, flags, descriptor, (long)offset);
    return cs_failed(result) ? 0 : (void *)result;
}

static inline void cs_unmap(void *address, uint64_t bytes) {
    cs_call3(SYS_munmap, (long)address, (long)bytes, 0);
}

/* Open a file to read or write, out of the way of the program's own descriptors; -1 when that fails. */
int cs_open(const char *path, int flags);
/* Move a descriptor to a high number; the old one is closed. */
int cs_move_descriptor(int descriptor);
void cs_close(int descriptor);
/* Size of an open file, or 0. */
uint64_t cs_file_bytes(int descriptor);

#endif

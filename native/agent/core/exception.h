/* The C++ exception a thread is at work on when it crashes: found and copied raw, with what readers need to name it.
 * Layouts: Itanium C++ ABI, "Exception Handling" 2.2 (as libstdc++ and libc++abi have it: unwind-cxx.h,
 * cxa_exception.h) and "C++ ABI" 2.9.5 (type_info). Async-signal-safe. */
#ifndef CALLSCOPE_AGENT_EXCEPTION_H
#define CALLSCOPE_AGENT_EXCEPTION_H

#include <stdint.h>

#define CS_EXCEPTION_LIMIT 0x2000u
#define CS_THROWN_OFFSET 80u /* of the _Unwind_Exception in a __cxa_exception, from its type on */
/* Words of an _Unwind_Exception that are the unwinder's own: libgcc's unwind-generic.h, with __SEH__ on Windows. */
#ifdef _WIN32
#define CS_UNWINDER_WORDS 6
#else
#define CS_UNWINDER_WORDS 2
#endif

/* Copies of memory, each behind its cs_crash_piece and padded to 8 bytes. */
struct cs_exception {
    uint64_t header; /* address of its _Unwind_Exception; 0: there is none */
    uint32_t bytes;  /* of `pieces` */
    uint64_t pieces[CS_EXCEPTION_LIMIT / 8];
};

/* The _Unwind_Exception of the exception that is being handled, as it is by std::terminate, when the head of the
 * thread's list of such exceptions lies in this memory; or 0. */
uint64_t cs_exception_among(uint64_t start, uint32_t bytes);
/* Copy the exception with its _Unwind_Exception there. */
void cs_exception_copy(struct cs_exception *out, uint64_t header);

#endif

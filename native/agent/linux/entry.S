/* The routines of core/routines.inc for Linux, and what the loader calls.
 *
 * The thread's block is loaded from a constant offset of the thread pointer, which bind_routines (start.c) writes into the
 * instructions at start: looking it up each time would cost two nanoseconds a call. */

    .intel_syntax noprefix
#define ARGUMENT1 rdi
#define ARGUMENT2 rsi
#define ARGUMENT2_32 esi
#define ARGUMENT3 rdx
#define ARGUMENT3_32 edx

    .macro bound name
    .globl \name
    .hidden \name
\name:
    .endm

    .section .rodata.thread_places, "a", @progbits
    .p2align 2
    bound cs_thread_places

    .bss
    .p2align 6
nowhere:
    .space 1024

    .section .text.routines, "ax", @progbits
    .p2align 12
    bound cs_routines_text

    .macro keep register
    push \register
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset \register, 0
    .endm

    .macro restore register
    pop \register
    .cfi_adjust_cfa_offset -8
    .cfi_restore \register
    .endm

    /* All status flags into rax, and back. */
    .macro keep_flags
    lahf
    seto al
    push rax
    .cfi_adjust_cfa_offset 8
    .endm

    .macro restore_flags
    pop rax
    .cfi_adjust_cfa_offset -8
    add al, 0x7f
    sahf
    .endm

    .macro keep_rflags
    pushfq
    .cfi_adjust_cfa_offset 8
    .endm

    .macro restore_rflags
    popfq
    .cfi_adjust_cfa_offset -8
    .endm

    .macro keep_frame
    keep rbp
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    .endm

    .macro restore_frame
    mov rsp, rbp
    .cfi_def_cfa_register rsp
    restore rbp
    .endm

    .macro body
    .endm

    .macro frame_remember
    .cfi_remember_state
    .endm

    .macro frame_back
    .cfi_restore_state
    .endm

    .macro call_c function
    call \function
    .endm

    .macro routine name
    .p2align 6
    .globl \name
    .hidden \name
    .type \name, @function
\name:
    .cfi_startproc
    .endm

    .macro end_routine name
    .cfi_endproc
    .size \name, . - \name
    .endm

    /* \register = cs_thread.block; every thread has one. */
    .macro load_block register, missing
    mov \register, fs:[0x7fffffff]
77: .pushsection .rodata.thread_places
    .long 77b - 4 - .
    .popsection
    .endm

#include "../core/routines.inc"
#include "near.inc"

    routine_set
    capture_routines

    .set CONTROL_SKIP, 2 << 3 | 4
    near_routine near_entry, KIND_ENTRY, 16, 16
    near_routine near_entry_red, KIND_ENTRY, 16, 16 + RED_ZONE
    near_routine near_exit, KIND_EXIT, 8, 8
    near_routine near_tail, KIND_TAIL, 8, 8
    near_routine near_tail_red, KIND_TAIL, 8, 8 + RED_ZONE

    /* What a trampoline that stores words next calls while its gate is closed: they go where nobody reads. */
    routine cs_off_words
    lea rcx, [rip + nowhere]
    ret
    end_routine cs_off_words

    /* void \name(void *function, void *call_site): what code built with -finstrument-functions calls. They record only
     * for modules with a plan that says so; the first argument and where the hook was called tell all. */
    .set HOOK_TIME, 8
    .set HOOK_SP, 12
    .set HOOK_FUNCTION, 16
    .set HOOK_RETURN_ADDRESS, 20
    .set HOOK_BYTES, 24
    .macro hook name, type
    .p2align 6
    .globl \name
    .type \name, @function
\name:
    .cfi_startproc
    cmp dword ptr [rip + cs_hooks], 1
    jb 2f
    ja 3f
1:  load_block r10
    mov r8d, HOOK_BYTES
    xadd [r10], r8
    lea r9, [r8 + HOOK_BYTES - 16]
    cmp r9, [r10 + BLOCK_END]
    jae 4f
    rdtsc
    cmp edx, [r10 + BLOCK_EPOCH]
    jne 5f
    mov dword ptr [r8 + KIND], HOOK_BYTES | 5
    mov dword ptr [r8], \type
    mov [r8 + HOOK_TIME], eax
    lea eax, [rsp + 8]
    mov [r8 + HOOK_SP], eax
    mov eax, [rsp]
    mov [r8 + HOOK_RETURN_ADDRESS], eax
    mov [r8 + HOOK_FUNCTION], edi
2:  ret
3:  lea rsi, [rsp + 8]
    mov rdx, [rsp]
    mov ecx, \type
    jmp cs_hook
4:  lea rax, [rsp + 8]
    call cs_call_refill
    jmp 1b
5:  push rdi
    .cfi_adjust_cfa_offset 8
    mov rdi, r8
    mov esi, 8 /* the rest of the slot stays empty */
    call cs_new_epoch
    pop rdi
    .cfi_adjust_cfa_offset -8
    jmp 1b
    .cfi_endproc
    .size \name, . - \name
    .endm

    hook __cyg_profile_func_enter, 16
    hook __cyg_profile_func_exit, 17

    /* In place of the loader's empty function for debuggers. */
    routine cs_loader_changed
    keep rax
    enter_c
    call_c cs_loader_update
    leave_c
    restore rax
    ret
    end_routine cs_loader_changed

    /* The loader calls this as a module's DT_INIT function, with that function's arguments. */
    routine cs_module_initialised
    keep rdi
    keep rsi
    keep rdx
    call cs_loader_module_ready
    restore rdx
    restore rsi
    restore rdi
    test rax, rax
    jz 3f
    jmp rax
3:  ret
    end_routine cs_module_initialised

    .p2align 12 /* no other code shares the pages that bind_routines makes writable for a moment */
    bound cs_routines_text_end

    .section .rodata.thread_places
    bound cs_thread_places_end

    .section .data.rel.ro.routines, "aw", @progbits
    .p2align 3
    bound cs_routines
    routine_rows
    bound cs_near_routines
    near_row 0, near_entry
    near_row 1, near_exit
    near_row 2, near_tail
    near_row 3, near_entry_red
    near_row 4, near_tail_red
    bound cs_near_routines_end

    .section .note.GNU-stack, "", @progbits

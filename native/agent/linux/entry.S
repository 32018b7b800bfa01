/* The hot path: what trampolines call through the stub page of their region.
 *
 *   cs_entry           [return to trampoline][saved rcx][return address of the traced call]   ecx = function id
 *   cs_exit, cs_tail   [return to trampoline][return address of the traced call]
 *   cs_landing         [return to trampoline][whatever the stack holds at a landing pad]
 *   ..._red            the same, but the trampoline moved the stack pointer 128 bytes further down first
 *   ..._plain          without the clock
 *   ..._deep           ask the depth filter first
 *   ..._ring           for a flight recorder: fetches the memory that is about to be used again
 *
 * Every register and the status flags are kept (rcx of an entry is the trampoline's to restore). A slot is reserved by
 * one unlocked xadd on the thread's own cursor: a signal handler on the same thread simply takes the next slots. The
 * word that holds the kind is stored before anything that could be taken for such a word. No locks, no system calls;
 * the slow path makes room and the reservation is tried again, so nothing depends on what signal handlers did
 * meanwhile. The clock is read before the stores: they cost a nanosecond less behind it.
 *
 * The thread's block is loaded from a constant offset of the thread pointer, which bind_routines (start.c) writes into the
 * instructions at start: looking it up each time would cost two nanoseconds a call. */

    .intel_syntax noprefix
    .macro bound name
    .globl \name
    .hidden \name
\name:
    .endm

    .section .rodata.thread_places, "a", @progbits
    .p2align 2
    bound cs_thread_places

    .section .text.routines, "ax", @progbits
    .p2align 12
    bound cs_routines_text

    .set BLOCK_END, 8
    .set BLOCK_EPOCH, 16
    .set TIME, 0
    .set KIND, 4
    .set FUNCTION, 8
    .set RETURN_ADDRESS, 12
    .set RED_ZONE, 128
    /* A ring has mostly left the caches when it is used again, and it is wiped a step ahead of the events: waiting for it
     * would cost two nanoseconds a call. */
    .set FETCH_AHEAD, 0x4400
    .set KIND_ENTRY, 1
    .set KIND_EXIT, 2
    .set KIND_TAIL, 3
    .set KIND_LANDING, 6

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

    /* \register = the thread's block, by way of cs_thread.block. */
    .macro load_block register
    mov \register, fs:[0x7fffffff]
77: .pushsection .rodata.thread_places
    .long 77b - 4 - .
    .popsection
    .endm

    /* rbx = a slot of \bytes bytes, rax = the thread's block; to \slow when there is no room. */
    .macro reserve bytes, slow
    load_block rax
    mov ebx, \bytes
    xadd [rax], rbx
    cmp rbx, [rax + BLOCK_END]
    jae \slow
    .endm

    /* Store the low half of the clock; to \changed when the high half is not the one the chunk knows. */
    .macro stamp changed
    rdtsc
    mov [rbx + TIME], eax
    load_block rax
    cmp edx, [rax + BLOCK_EPOCH]
    jne \changed
    .endm

    /* The rare ends of a routine; both try again at 1. */
    .macro rare sp_offset, bytes, clock
8:  lea rax, [rsp + \sp_offset]
    call cs_call_refill
    jmp 1b
    .if \clock
9:  mov eax, \bytes
    call cs_call_new_epoch
    jmp 1b
    .endif
    .endm

    .macro entry_routine name, clock, red, ring=0
    routine \name
    keep rax
    .if \clock
    keep rdx
    .endif
    keep rbx
    keep_flags
    .set sp_offset, 24 + 8 * \clock + 8 + 8 + \red
1:  reserve 16, 8f
    .if \clock
    stamp 9f
    .endif
    .if \ring
    prefetchw [rbx + FETCH_AHEAD]
    .endif
    lea eax, [rsp + sp_offset + KIND_ENTRY]
    mov [rbx + KIND], eax
    mov [rbx + FUNCTION], ecx
    mov eax, [rsp + sp_offset]
    mov [rbx + RETURN_ADDRESS], eax
    .cfi_remember_state
    restore_flags
    restore rbx
    .if \clock
    restore rdx
    .endif
    restore rax
    ret
    .cfi_restore_state
    rare sp_offset, 16, \clock
    end_routine \name
    .endm

    .macro exit_routine name, kind, clock, red
    routine \name
    keep rax
    .if \clock
    keep rdx
    .endif
    keep rbx
    keep_flags
    .set sp_offset, 24 + 8 * \clock + 8 + \red
1:  reserve 8, 8f
    .if \clock
    stamp 9f
    .endif
    lea eax, [rsp + sp_offset + \kind]
    mov [rbx + KIND], eax
    .cfi_remember_state
    restore_flags
    restore rbx
    .if \clock
    restore rdx
    .endif
    restore rax
    ret
    .cfi_restore_state
    rare sp_offset, 8, \clock
    end_routine \name
    .endm

    entry_routine cs_entry, 1, 0
    entry_routine cs_entry_red, 1, RED_ZONE
    entry_routine cs_entry_plain, 0, 0
    entry_routine cs_entry_plain_red, 0, RED_ZONE
    entry_routine cs_entry_ring, 1, 0, 1
    entry_routine cs_entry_ring_red, 1, RED_ZONE, 1
    entry_routine cs_entry_plain_ring, 0, 0, 1
    entry_routine cs_entry_plain_ring_red, 0, RED_ZONE, 1
    exit_routine cs_exit, KIND_EXIT, 1, 0
    exit_routine cs_tail, KIND_TAIL, 1, 0
    exit_routine cs_tail_red, KIND_TAIL, 1, RED_ZONE
    exit_routine cs_landing, KIND_LANDING, 1, 0
    exit_routine cs_landing_plain, KIND_LANDING, 0, 0
    exit_routine cs_exit_plain, KIND_EXIT, 0, 0
    exit_routine cs_tail_plain, KIND_TAIL, 0, 0
    exit_routine cs_tail_plain_red, KIND_TAIL, 0, RED_ZONE

    /* Keep what a C function may change besides rax, and align the stack, for code that may be entered anywhere. */
    .macro enter_c
    keep rcx
    keep rdx
    keep rsi
    keep rdi
    keep r8
    keep r9
    keep r10
    keep r11
    pushfq
    .cfi_adjust_cfa_offset 8
    keep rbp
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    and rsp, -16
    cld
    .endm

    .macro leave_c
    mov rsp, rbp
    .cfi_def_cfa_register rsp
    restore rbp
    popfq
    .cfi_adjust_cfa_offset -8
    restore r11
    restore r10
    restore r9
    restore r8
    restore rdi
    restore rsi
    restore rdx
    restore rcx
    .endm

    /* rax = stack pointer of the call. */
    routine cs_call_refill
    enter_c
    mov rdi, rax
    call cs_refill
    leave_c
    ret
    end_routine cs_call_refill

    /* rbx = the slot, eax = its bytes, edx = the new epoch. */
    routine cs_call_new_epoch
    enter_c
    mov rdi, rbx
    mov esi, eax
    call cs_new_epoch
    leave_c
    ret
    end_routine cs_call_new_epoch

    /* The depth filter in front of \then. The flags it must keep are put back by popfq. */
    .macro deep_routine name, ask, offset, then
    routine \name
    keep rax
    enter_c
    lea rdi, [rbp + 88 + \offset]
    call \ask
    test al, al
    .cfi_remember_state
    jz 2f
    leave_c
    restore rax
    jmp \then
    .cfi_restore_state
2:  leave_c
    restore rax
    ret
    end_routine \name
    .endm

    deep_routine cs_entry_deep, cs_depth_enter, 16, cs_entry
    deep_routine cs_entry_deep_red, cs_depth_enter, 16 + RED_ZONE, cs_entry_red
    deep_routine cs_entry_plain_deep, cs_depth_enter, 16, cs_entry_plain
    deep_routine cs_entry_plain_deep_red, cs_depth_enter, 16 + RED_ZONE, cs_entry_plain_red
    deep_routine cs_exit_deep, cs_depth_leave, 8, cs_exit
    deep_routine cs_tail_deep, cs_depth_leave, 8, cs_tail
    deep_routine cs_tail_deep_red, cs_depth_leave, 8 + RED_ZONE, cs_tail_red
    deep_routine cs_exit_plain_deep, cs_depth_leave, 8, cs_exit_plain
    deep_routine cs_tail_plain_deep, cs_depth_leave, 8, cs_tail_plain
    deep_routine cs_tail_plain_deep_red, cs_depth_leave, 8 + RED_ZONE, cs_tail_plain_red

    /* A landing is recorded whatever the depth. */
    exit_routine cs_landing_deep, KIND_LANDING, 1, 0
    exit_routine cs_landing_plain_deep, KIND_LANDING, 0, 0

    /* In place of the loader's empty function for debuggers. */
    routine cs_loader_changed
    keep rax
    enter_c
    call cs_loader_update
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

    .section .note.GNU-stack, "", @progbits

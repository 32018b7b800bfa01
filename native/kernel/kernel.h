/* What every exported function of the kernel library shares. */
#ifndef CALLSCOPE_KERNEL_H
#define CALLSCOPE_KERNEL_H

/* The library is compiled with -fvisibility=hidden: only functions marked so can be called from outside. */
#define CS_EXPORT __attribute__((visibility("default")))

#endif

/* bcryptprimitives.dll, which Wine 8 lacks: Rust's and Go's programs ask it for random numbers. */
#include <windows.h>

BOOLEAN WINAPI SystemFunction036(PVOID data, ULONG bytes); /* RtlGenRandom of advapi32 */

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T bytes) {
    return SystemFunction036(data, (ULONG)bytes);
}

/* Changes one of its own functions before the program starts, as a packer or a hook would: in a TLS callback. */
#include <stdio.h>
#include <windows.h>

__attribute__((noinline)) int changed(int n) {
    volatile int sum = n + 1;
    return sum + 40;
}

__attribute__((noinline)) int kept(int n) {
    volatile int sum = n + 2;
    return sum;
}

static void NTAPI change(void *image, DWORD reason, void *reserved) {
    static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov eax, 42; ret */
    DWORD old;
    (void)image;
    (void)reserved;
    if (reason != DLL_PROCESS_ATTACH || !VirtualProtect((void *)changed, sizeof code, PAGE_EXECUTE_READWRITE, &old))
        return;
    for (unsigned i = 0; i < sizeof code; i++)
        ((volatile unsigned char *)changed)[i] = code[i];
    VirtualProtect((void *)changed, sizeof code, old, &old);
}

__attribute__((section(".CRT$XLB"), used)) PIMAGE_TLS_CALLBACK callback = change;

int main(int count, char **words) {
    (void)words;
    int (*volatile first)(int) = changed, (*volatile second)(int) = kept;
    printf("%d %d\n", first(count), second(count));
    return 0;
}

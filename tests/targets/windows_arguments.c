/* Prints how the program was called. */
#include <stdio.h>
#include <windows.h>

int main(int count, char **arguments) {
    char path[MAX_PATH];
    GetModuleFileNameA(NULL, path, sizeof path);
    printf("%s\n%s\n", GetCommandLineA(), path);
    for (int i = 0; i < count; i++)
        printf("[%s]\n", arguments[i]);
    return count;
}

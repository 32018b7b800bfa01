/* Attaching to a running process, and detaching. */
#include "launcher.h"

#include <tlhelp32.h>

#define LONGEST_START 120000u
#define ACCESS                                                                                                         \
    (PROCESS_CREATE_THREAD | PROCESS_QUERY_INFORMATION | PROCESS_VM_OPERATION | PROCESS_VM_READ | PROCESS_VM_WRITE)

static void say(const char *text) {
    DWORD written, length = 0;
    while (text[length])
        length++;
    WriteFile(GetStdHandle(STD_OUTPUT_HANDLE), text, length, &written, NULL);
}

static void say_number(uint32_t number) {
    char digits[12];
    uint32_t at = sizeof digits - 1;
    digits[at] = 0;
    do
        digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    say(digits + at);
}

/* The process meant by an id or by a program's name; 0, with the reason given, when it is none or one of several. */
static DWORD find(const WCHAR *which) {
    PROCESSENTRY32W entry = {.dwSize = sizeof entry};
    HANDLE snapshot = CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0);
    DWORD id = 0, found[64];
    uint32_t count = 0;
    for (const WCHAR *at = which; *at >= '0' && *at <= '9'; at++)
        id = at[1] && (at[1] < '0' || at[1] > '9') ? 0 : id * 10 + (DWORD)(*at - '0');
    for (BOOL more = Process32FirstW(snapshot, &entry); more; more = Process32NextW(snapshot, &entry))
        if (id ? entry.th32ProcessID == id : !lstrcmpiW(entry.szExeFile, which))
            if (count < sizeof found / sizeof *found)
                found[count++] = entry.th32ProcessID;
    CloseHandle(snapshot);
    if (count == 1)
        return found[0];
    if (!count) {
        cs_fail("there is no such process", which);
        return 0;
    }
    say("{\"several\": [");
    for (uint32_t i = 0; i < count; i++) {
        say(i ? ", " : "");
        say_number(found[i]);
    }
    say("]}\n");
    cs_fail("several processes have this name", which);
    return 0;
}

/* Run the agent's function in the process; `refusal`: what it means when that is not done. The exit status. */
static int call(DWORD id, const char *function, const struct cs_start *start, const WCHAR *which, const char *refusal) {
    HANDLE process = OpenProcess(ACCESS, FALSE, id);
    BOOL is_32_bit = FALSE;
    if (!process)
        return cs_fail_system("the process cannot be opened", which);
    if (IsWow64Process(process, &is_32_bit) && is_32_bit)
        return cs_fail("it is a 32-bit process", which);
    void *place = cs_place(process, function, start);
    HANDLE thread = place ? CreateRemoteThread(process, NULL, 0, (LPTHREAD_START_ROUTINE)place, place, 0, NULL) : NULL;
    if (!thread || WaitForSingleObject(thread, LONGEST_START) != WAIT_OBJECT_0)
        return cs_fail("the agent cannot be put into the process", which);
    DWORD result = (DWORD)-1;
    GetExitCodeThread(thread, &result);
    VirtualFreeEx(process, place, 0, MEM_RELEASE);
    if (result)
        return cs_fail(result == 1 ? "the process is traced already" : refusal, which);
    say("{\"pid\": ");
    say_number(id);
    say("}\n");
    return 0;
}

int cs_attach(const struct cs_start *start, const WCHAR *which) {
    static struct cs_start running;
    running = *start;
    running.flags |= CS_START_ATTACHED;
    DWORD id = find(which);
    return id ? call(id, "callscope_attach", &running, which, "the agent does not start there") : CS_FAILED;
}

int cs_detach(const WCHAR *which) {
    static const struct cs_start none;
    DWORD id = find(which);
    return id ? call(id, "callscope_detach", &none, which, "the process is not traced") : CS_FAILED;
}

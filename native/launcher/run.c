/* Starting a program: suspended, so that the agent is there before its first instruction. */
#include "launcher.h"

static struct cs_injection injection;

const WCHAR *cs_agent_path(void) {
    static const WCHAR name[] = L"callscope-agent.dll";
    static WCHAR path[CS_LIBRARY_CHARACTERS];
    uint32_t length = GetModuleFileNameW(NULL, path, CS_LIBRARY_CHARACTERS);
    while (length && path[length - 1] != '\\')
        length--;
    if (!length || length + sizeof name / sizeof *name > CS_LIBRARY_CHARACTERS)
        return NULL;
    for (uint32_t i = 0; i < sizeof name / sizeof *name; i++)
        path[length + i] = name[i];
    return path;
}

void *cs_place(HANDLE process, const char *function, const struct cs_start *start) {
    const WCHAR *library = cs_agent_path();
    if (!library || !cs_injection_fill(&injection, library, function, start))
        return NULL;
    void *place = VirtualAllocEx(process, NULL, sizeof injection, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READWRITE);
    SIZE_T written;
    if (place && !WriteProcessMemory(process, place, &injection, sizeof injection, &written))
        place = NULL;
    return place;
}

const WCHAR *cs_windows_path(const WCHAR *path) {
    static char linux_path[4096];
    WCHAR *(CDECL * to_windows)(const char *) =
        (void *)GetProcAddress(GetModuleHandleW(L"kernel32.dll"), "wine_get_dos_file_name");
    const WCHAR *found = NULL;
    if (path[0] == '/' && to_windows &&
        WideCharToMultiByte(CP_UTF8, 0, path, -1, linux_path, sizeof linux_path, NULL, NULL))
        found = to_windows(linux_path);
    return found ? found : path;
}

/* Under Wine, a program may be given by its path on Linux: Wine would start it as it does its first program, by its
 * path on Windows in quotes. `*path` is changed, and the command line to use returned. */
static WCHAR *as_on_windows(const WCHAR **path, WCHAR *command, const WCHAR *arguments) {
    static WCHAR line[0x8000];
    const WCHAR *found = cs_windows_path(*path);
    if (found == *path)
        return command;
    *path = found;
    const WCHAR *parts[] = {L"\"", found, *arguments ? L"\" " : L"\"", arguments};
    uint32_t at = 0;
    for (uint32_t i = 0; i < 4; i++)
        for (const WCHAR *in = parts[i]; *in && at + 1 < sizeof line / sizeof *line; in++)
            line[at++] = *in;
    return line;
}

/* The terminal's interrupt reaches the program itself: this process only waits for it. */
static BOOL WINAPI ignore(DWORD event) {
    return event == CTRL_C_EVENT || event == CTRL_BREAK_EVENT;
}

/* When this process is killed, so is the program; its children are not, and may leave jobs as they like. */
static void tie(HANDLE process) {
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {
        .BasicLimitInformation.LimitFlags =
            JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_BREAKAWAY_OK | JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK};
    HANDLE job = CreateJobObjectW(NULL, NULL);
    if (job && SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limits, sizeof limits))
        AssignProcessToJobObject(job, process);
}

/* The exit status of a process has 32 bits on Windows, of which Linux sees 8: all are left for the recorder. */
static void tell_status(const struct cs_start *start, DWORD status) {
    static const WCHAR name[] = L"/status";
    static WCHAR path[CS_LIBRARY_CHARACTERS + sizeof name / sizeof *name];
    int length = MultiByteToWideChar(CP_UTF8, 0, start->recorder, -1, path, CS_LIBRARY_CHARACTERS);
    if (!length)
        return;
    for (uint32_t i = 0; i < sizeof name / sizeof *name; i++)
        path[(uint32_t)length - 1 + i] = name[i];
    HANDLE file = CreateFileW(cs_windows_path(path), GENERIC_WRITE, 0, NULL, CREATE_NEW, 0, NULL);
    if (file == INVALID_HANDLE_VALUE)
        return;
    DWORD written;
    WriteFile(file, &status, sizeof status, &written, NULL);
    CloseHandle(file);
}

int cs_run(const struct cs_start *start, const WCHAR *path, WCHAR *command, const WCHAR *arguments) {
    STARTUPINFOW own;
    GetStartupInfoW(&own);
    STARTUPINFOW startup = {.cb = sizeof startup,
                            .dwFlags = STARTF_USESTDHANDLES | (own.dwFlags & STARTF_USESHOWWINDOW),
                            .wShowWindow = own.wShowWindow,
                            .hStdInput = GetStdHandle(STD_INPUT_HANDLE),
                            .hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE),
                            .hStdError = GetStdHandle(STD_ERROR_HANDLE)};
    PROCESS_INFORMATION child;
    SetConsoleCtrlHandler(ignore, TRUE);
    command = as_on_windows(&path, command, arguments);
    if (!CreateProcessW(path, command, NULL, NULL, TRUE, CREATE_SUSPENDED, NULL, NULL, &startup, &child))
        return cs_fail_system("the program cannot be started", path);
    tie(child.hProcess);
    void *place = cs_place(child.hProcess, "callscope_attach", start);
    if (!place || !QueueUserAPC((PAPCFUNC)place, child.hThread, (ULONG_PTR)place)) {
        TerminateProcess(child.hProcess, 1);
        return cs_fail("the agent cannot be put into the program", path);
    }
    ResumeThread(child.hThread);
    WaitForSingleObject(child.hProcess, INFINITE);
    DWORD status = 1;
    GetExitCodeProcess(child.hProcess, &status);
    tell_status(start, status);
    return (int)status;
}

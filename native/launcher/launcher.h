/* What the launcher's files share. */
#ifndef CALLSCOPE_LAUNCHER_H
#define CALLSCOPE_LAUNCHER_H

#include <stdbool.h>
#include <stdint.h>
#include <windows.h>

#include "../inject/inject.h"

#define CS_FAILED 125

/* Say what went wrong; the exit status to end with. */
int cs_fail(const char *what, const WCHAR *subject);
/* The same of what the system refused: with the number of its last error. */
int cs_fail_system(const char *what, const WCHAR *subject);

/* Run a program with the agent: its exit status. `path` begins its `command` line, `arguments` are the rest. */
int cs_run(const struct cs_start *start, const WCHAR *path, WCHAR *command, const WCHAR *arguments);
/* Load the agent into a running process, named by id or by its program's file name. */
int cs_attach(const struct cs_start *start, const WCHAR *which);
/* Stop the agent there. */
int cs_detach(const WCHAR *which);

/* Answer what lies where in an image: symbols.c. The exit status. */
int cs_symbols(const WCHAR *search, const WCHAR *image);
/* A path of Linux as Wine's programs see it; other paths as they are. */
const WCHAR *cs_windows_path(const WCHAR *path);

/* The agent's path: beside this program. NULL when it is too long. */
const WCHAR *cs_agent_path(void);
/* Make the injection lie in a process; its address there, or NULL. */
void *cs_place(HANDLE process, const char *function, const struct cs_start *start);

#endif

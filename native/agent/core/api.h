/* What programs call by callscope.h. */
#ifndef CALLSCOPE_AGENT_API_H
#define CALLSCOPE_AGENT_API_H

#include <stdint.h>

#define CS_API __attribute__((visibility("default"), used))

void callscope_stop(void);
void callscope_start(void);
void callscope_pause(void);
void callscope_resume(void);
void callscope_marker(const char *text);
void callscope_thread_name(const char *name);
void callscope_capture(uint64_t tag);

#endif

/* callscope.h, as far as it is not the same on all systems. */
#include "../core/api.h"

#include <linux/prctl.h>

#include "linux.h"

extern int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);

CS_API void callscope_thread_name(const char *name) {
    if (cs_session.events && name)
        prctl(PR_SET_NAME, (unsigned long)name, 0, 0, 0);
}

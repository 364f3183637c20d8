/* What these programs have in common: SHOW(call) prints a line with the call's result, or the name of its error. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SHOW(call) show(#call, (errno = 0, (long)(call)))
/* The same for results that differ from run to run, such as addresses: only whether it went well. */
#define TRY(call) show(#call, (errno = 0, (long)(call)) == -1 ? -1 : 0)
#define CHECK(condition) printf("%s: %s\n", #condition, (condition) ? "yes" : "NO")

static inline void show(const char *call, long result)
{
    printf("%s: ", call);
    if (result == -1 && errno)
        printf("%s\n", strerrorname_np(errno));
    else
        printf("%ld\n", result);
}

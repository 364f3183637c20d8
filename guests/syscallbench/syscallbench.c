/* syscallbench: what a system call costs that has nothing to do: getppid(2), in a loop.
 *
 *     syscallbench [CALLS]
 */
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "args.h"
#include "clock.h"

int main(int argc, char **argv)
{
    long calls = number_argument(argc, argv, 1, 100000, 1, 1000000000);
    int64_t start = clock_ns(CLOCK_MONOTONIC);
    for (long i = 0; i < calls; i++)
        syscall(SYS_getppid);
    int64_t elapsed = clock_ns(CLOCK_MONOTONIC) - start;
    printf("calls %ld ns_per_call %lld\n", calls, (long long)(elapsed / calls));
    return 0;
}

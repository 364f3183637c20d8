/* The time by the C library and by system calls, in turns: in order, and never far apart. */
#include "show.h"
#include <sys/time.h>
#include <time.h>

static long of(struct timespec time)
{
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void differ(const char *what, long first, long second)
{
    printf("%s: %ld, then %ld\n", what, first, second);
    exit(1);
}

int main(int argc, char **argv)
{
    static const clockid_t ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI};
    struct timespec first, second, third, last = {0, 0};
    if (argc > 1 && argv[1][0] == '1') {
        clock_gettime(CLOCK_REALTIME, &first);
        printf("%ld.%09ld\n", first.tv_sec, first.tv_nsec);
        return 0;
    }
    for (int i = 0; i < 2000; i++) {
        int id = ids[i % 5];
        clock_gettime(id, &first);
        syscall(SYS_clock_gettime, id, &second);
        clock_gettime(id, &third);
        if (of(first) - of(second) > 1000000)
            differ("the library was ahead", of(first), of(second));
        if (of(second) - of(third) > 1000000)
            differ("the library was behind", of(second), of(third));
    }
    for (int i = 0; i < 100000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &first);
        if (of(first) < of(last))
            differ("it went back", of(last), of(first));
        last = first;
    }
    struct timeval day;
    gettimeofday(&day, NULL);
    long before = time(NULL), by_call = syscall(SYS_time, NULL), after = time(NULL);
    if (day.tv_usec < 0 || day.tv_usec > 999999 || before > by_call + 1 || by_call > after + 1)
        differ("gettimeofday", day.tv_sec, day.tv_usec);
    if (clock_gettime(77, &first) != -1 || errno != EINVAL)
        differ("a clock that there is not", 77, errno);
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &first) != 0 || of(first) <= 0)
        differ("CPU time", 0, of(first));
    struct timespec resolution;
    if (clock_getres(CLOCK_MONOTONIC, &resolution) != 0 || of(resolution) != 1)
        differ("resolution", 1, of(resolution));
    return 0;
}

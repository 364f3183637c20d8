/* Time in nanoseconds, as one number. */
#ifndef GUESTS_CLOCK_H
#define GUESTS_CLOCK_H

#include <errno.h>
#include <stdint.h>
#include <time.h>

static inline int64_t nanoseconds(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static inline int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return nanoseconds(t);
}

/* Sleep until CLOCK_MONOTONIC reads `deadline` (ns); at once if it already has. */
static inline void sleep_until(int64_t deadline)
{
    struct timespec t = timespec_of(deadline);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

#endif

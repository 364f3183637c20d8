/* sleeper: sleeps in each of the ways there are, and checks that it never slept too short. A guest saved in the
 * middle of a sleep sleeps the rest after its restore, no more.
 *
 *     sleeper [MS [ROUNDS]]      ROUNDS 0: for ever
 *
 * The time that passed is printed as a coarse multiple of the time asked for: "1 to 2 times", "2 to 4 times" ...
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "clock.h"

enum way { NANOSLEEP, CLOCK_NANOSLEEP, CLOCK_NANOSLEEP_UNTIL, WAYS };
static const char *const names[WAYS] = {"nanosleep", "clock_nanosleep", "clock_nanosleep until"};

static void fail(const char *what, int error)
{
    printf("%s: %s\n", what, strerror(error));
    exit(1);
}

/* Sleeps `ns` with one of the relative calls, over as many interruptions as there are. */
static void sleep_for(enum way way, int64_t ns)
{
    struct timespec rest = timespec_of(ns);
    for (;;) {
        struct timespec request = rest;
        int error = way == NANOSLEEP ? (nanosleep(&request, &rest) == 0 ? 0 : errno)
                                     : clock_nanosleep(CLOCK_MONOTONIC, 0, &request, &rest);
        if (error == 0)
            return;
        if (error != EINTR)
            fail(names[way], error);
        if (nanoseconds(rest) < 0 || nanoseconds(rest) > nanoseconds(request) || rest.tv_nsec < 0)
            fail("the time that remains is wrong", EINTR);
    }
}

int main(int argc, char **argv)
{
    int64_t asked = number_argument(argc, argv, 1, 100, 1, 3600000) * 1000000;
    long rounds = number_argument(argc, argv, 2, 1, 0, 1000000000);
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct timespec invalid = {.tv_sec = 0, .tv_nsec = -1};
    if (nanosleep(&invalid, NULL) != -1 || errno != EINVAL)
        fail("a negative sleep was not refused with EINVAL", errno);
    for (long round = 1; rounds == 0 || round <= rounds; round++) {
        for (enum way way = 0; way < WAYS; way++) {
            int64_t start = clock_ns(CLOCK_MONOTONIC);
            if (way == CLOCK_NANOSLEEP_UNTIL)
                sleep_until(start + asked);
            else
                sleep_for(way, asked);
            int64_t elapsed = clock_ns(CLOCK_MONOTONIC) - start;
            if (elapsed < asked) {
                printf("%s: slept %lld ns instead of %lld\n", names[way], (long long)elapsed, (long long)asked);
                return 1;
            }
            long times = 1;
            while (elapsed >= 2 * times * asked)
                times *= 2;
            printf("%s: %ld to %ld times\n", names[way], times, 2 * times);
        }
    }
    return 0;
}

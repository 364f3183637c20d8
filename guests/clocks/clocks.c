/* clocks: for each line on standard input, what the clocks say, in seconds; exit status 1 if one that may not go
 * backwards did. Across a restore CLOCK_MONOTONIC goes on from where it was, and CLOCK_REALTIME is today's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "clock.h"

static const struct {
    clockid_t clock;
    const char *name;
    int may_go_back;
} clocks[] = {
    {CLOCK_MONOTONIC, "monotonic", 0},
    {CLOCK_MONOTONIC_RAW, "raw", 0},
    {CLOCK_BOOTTIME, "boottime", 0},
    {CLOCK_PROCESS_CPUTIME_ID, "cpu", 0},
    {CLOCK_REALTIME, "realtime", 1},
};

enum { CLOCKS = sizeof clocks / sizeof *clocks };

int main(void)
{
    static int64_t last[CLOCKS];
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n')
            continue;
        for (int i = 0; i < CLOCKS; i++) {
            int64_t now = clock_ns(clocks[i].clock);
            if (now < last[i] && !clocks[i].may_go_back) {
                printf("\n%s went back by %lld ns\n", clocks[i].name, (long long)(last[i] - now));
                return 1;
            }
            last[i] = now;
            printf("%s%s %lld.%06lld", i == 0 ? "" : " ", clocks[i].name, (long long)(now / 1000000000),
                   (long long)(now % 1000000000 / 1000));
        }
        putchar('\n');
    }
    return 0;
}

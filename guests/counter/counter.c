/* counter: a heart-beat. Prints a numbered line every so many milliseconds, so that a gap or a repeat shows.
 *
 *     counter [PERIOD_MS [COUNT [HOT_MIB]]]      COUNT 0: for ever
 *
 * With HOT_MIB it also adds 1 to a word of every page of a hot set before each line, and checks each of them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "args.h"
#include "clock.h"
#include "pages.h"

static void touch_hot_set(unsigned char *hot, long pages, uint64_t line)
{
    for (long page = 0; page < pages; page++) {
        uint64_t *word = (uint64_t *)(hot + page * PAGE_SIZE);
        if (*word != line - 1) {
            printf("page %ld of the hot set is wrong: %llu, and should be %llu\n", page, (unsigned long long)*word,
                   (unsigned long long)(line - 1));
            exit(1);
        }
        *word = line;
    }
}

int main(int argc, char **argv)
{
    long period_ms = number_argument(argc, argv, 1, 1000, 0, 3600000);
    long count = number_argument(argc, argv, 2, 0, 0, 1000000000);
    long pages = number_argument(argc, argv, 3, 0, 0, 1 << 20) * PAGES_PER_MIB;
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsigned char *hot = NULL;
    if (pages > 0) {
        hot = mmap(NULL, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (hot == MAP_FAILED) {
            perror("mmap");
            return 1;
        }
    }
    for (long line = 1; count == 0 || line <= count; line++) {
        touch_hot_set(hot, pages, line);
        printf("count %ld\n", line);
        sleep_until(clock_ns(CLOCK_MONOTONIC) + period_ms * 1000000);
    }
    return 0;
}

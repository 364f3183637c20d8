/* ticker: a program with much memory of which it uses little, that must be in time: it walks over its hot set and
 * prints a line every few milliseconds, and each line says by how much it is late. Freezes show in it.
 *
 *     ticker [TOTAL_MIB [HOT_MIB [PERIOD_MS [COUNT [touched|full]]]]]      COUNT 0: for ever
 *
 * A quarter of the memory is never touched (or, with "touched", zeros are written to it, and with "full" random bytes),
 * half is text-like, a quarter is random. The hot set is the end of it. Every page of the hot set is read, checked and written
 * before each line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "args.h"
#include "clock.h"
#include "pages.h"

/* The kinds come in runs of this many pages, in turn: zero, text, random, text. */
enum { RUN_PAGES = 64 };

static void fill(unsigned char *memory, long pages, int touch_zeros, int full)
{
    const enum page_kind kinds[4] = {full ? RANDOM_PAGE : ZERO_PAGE, TEXT_PAGE, RANDOM_PAGE, TEXT_PAGE};
    for (long page = 0; page < pages; page++) {
        enum page_kind kind = kinds[page / RUN_PAGES % 4];
        if (kind != ZERO_PAGE || touch_zeros)
            fill_page(memory + page * PAGE_SIZE, kind, mix64((uint64_t)page));
    }
}

/* The first word of each hot page counts the ticks. */
static void walk_hot_set(unsigned char *hot, long pages, uint64_t tick)
{
    for (long page = 0; page < pages; page++) {
        uint64_t *word = (uint64_t *)(hot + page * PAGE_SIZE);
        if (*word != tick - 1) {
            printf("tick %llu: page %ld of the hot set is wrong\n", (unsigned long long)tick, page);
            exit(1);
        }
        *word = tick;
    }
}

int main(int argc, char **argv)
{
    long pages = number_argument(argc, argv, 1, 64, 1, 1 << 20) * PAGES_PER_MIB;
    long hot_pages = number_argument(argc, argv, 2, 4, 0, pages / PAGES_PER_MIB) * PAGES_PER_MIB;
    int64_t period = number_argument(argc, argv, 3, 5, 1, 60000) * 1000000;
    long count = number_argument(argc, argv, 4, 0, 0, 1000000000);
    int touch_zeros = argc > 5 && strcmp(argv[5], "touched") == 0;
    int full = argc > 5 && strcmp(argv[5], "full") == 0;
    setvbuf(stdout, NULL, _IOLBF, 0);

    unsigned char *memory =
        mmap(NULL, (size_t)pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    fill(memory, pages, touch_zeros, full);
    unsigned char *hot = memory + (pages - hot_pages) * PAGE_SIZE;
    for (long page = 0; page < hot_pages; page++)
        memset(hot + page * PAGE_SIZE, 0, sizeof(uint64_t));
    printf("ready %ld MiB, hot %ld MiB\n", pages / PAGES_PER_MIB, hot_pages / PAGES_PER_MIB);

    int64_t deadline = clock_ns(CLOCK_MONOTONIC) + period;
    for (long tick = 1; count == 0 || tick <= count; tick++) {
        sleep_until(deadline);
        walk_hot_set(hot, hot_pages, (uint64_t)tick);
        int64_t late = clock_ns(CLOCK_MONOTONIC) - deadline;
        printf("tick %ld late_us %lld\n", tick, (long long)(late / 1000));
        /* One freeze makes one late line: a line that is a whole period late starts the beat anew. */
        deadline += late < period ? period : late + period;
    }
    return 0;
}

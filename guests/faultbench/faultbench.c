/* faultbench: how long the first touch of a page takes, one page at a time.
 *
 *     faultbench [PAGES [STRIDE [read | write | again]]]
 *
 * PAGES pages are touched, each STRIDE pages after the last. "again" first fills them, prints "ready", and waits for
 * a line on standard input; then it reads them and checks what it reads. Saved while it waits and restored
 * lazily, it measures what a deferred page costs. Time is the processor's time-stamp counter, calibrated against
 * CLOCK_MONOTONIC, so that the measuring makes no system call.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include "args.h"
#include "clock.h"
#include "pages.h"

static double ns_per_cycle(void)
{
    unsigned int cpu;
    int64_t start = clock_ns(CLOCK_MONOTONIC);
    uint64_t first = __rdtscp(&cpu);
    sleep_until(start + 20000000);
    uint64_t last = __rdtscp(&cpu);
    return (double)(clock_ns(CLOCK_MONOTONIC) - start) / (double)(last - first);
}

/* Cycles that one access takes. The fences keep it between the two readings of the counter. */
static uint64_t time_touch(volatile uint64_t *word, int writes, uint64_t *value)
{
    unsigned int cpu;
    _mm_mfence();
    uint64_t before = __rdtscp(&cpu);
    _mm_lfence();
    if (writes)
        *word = *value;
    else
        *value = *word;
    _mm_mfence();
    return __rdtscp(&cpu) - before;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    long pages = number_argument(argc, argv, 1, 10000, 1, 1 << 26);
    long stride = number_argument(argc, argv, 2, 1, 1, 1 << 20);
    const char *mode = argc > 3 ? argv[3] : "write";
    int writes = strcmp(mode, "write") == 0, again = strcmp(mode, "again") == 0;
    if (!writes && !again && strcmp(mode, "read") != 0) {
        fprintf(stderr, "faultbench: no mode %s\n", mode);
        return EXIT_USAGE;
    }
    size_t size = (size_t)pages * (size_t)stride * PAGE_SIZE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    uint64_t *cycles = malloc((size_t)pages * sizeof *cycles);
    if (memory == MAP_FAILED || cycles == NULL) {
        perror("faultbench: memory");
        return 1;
    }
    /* Pages one by one, not 2 MiB at once; refused (no such thing in this kernel) is as good. */
    madvise(memory, size, MADV_NOHUGEPAGE);
    memset(cycles, 1, (size_t)pages * sizeof *cycles);
    if (again) {
        for (long i = 0; i < pages; i++)
            fill_page(memory + (size_t)(i * stride) * PAGE_SIZE, TEXT_PAGE, mix64((uint64_t)i));
        puts("ready");
        fflush(stdout);
        for (int c; (c = getchar()) != '\n';)
            if (c == EOF)
                return 1;
    }
    double ns = ns_per_cycle();
    for (long i = 0; i < pages; i++) {
        uint64_t value = (uint64_t)i + 1;
        unsigned char *page = memory + (size_t)(i * stride) * PAGE_SIZE;
        cycles[i] = time_touch((volatile uint64_t *)page, writes, &value);
        static unsigned char right[PAGE_SIZE];
        fill_page(right, again ? TEXT_PAGE : ZERO_PAGE, mix64((uint64_t)i));
        if (!writes && memcmp(page, right, PAGE_SIZE) != 0) {
            printf("page %ld is wrong\n", i);
            return 1;
        }
    }
    qsort(cycles, (size_t)pages, sizeof *cycles, by_size);
    printf("faults %ld stride %ld p50 %.0f p90 %.0f p99 %.0f ns\n", pages, stride, ns * (double)cycles[pages / 2],
           ns * (double)cycles[pages * 9 / 10], ns * (double)cycles[pages * 99 / 100]);
    return 0;
}

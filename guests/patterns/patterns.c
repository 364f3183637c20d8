/* patterns: fills memory with contents that can be checked without a copy, re-checks every page each pass, and
 * gives a share of the pages new contents. The guest that notices a single wrong byte after a restore.
 *
 *     patterns [MIB [PASSES [REWRITE% [ZERO% [TEXT% [MODE]]]]]]      PASSES 0: for ever
 *
 * What a page must hold follows from its number and its generation: zeros, text-like or random. Generation 0 is
 * the page as the system gave it: zeros. Memory is in blocks; MODE says what else happens to some of them
 * in each pass:
 *
 *     plain      nothing, only the rewriting
 *     malloc     blocks are freed and allocated again, and made larger and smaller with realloc
 *     mmap       blocks are unmapped, and new ones mapped, which must be zero
 *     mremap     blocks grow (the new part must be zero), shrink and move
 *     madvise    ranges are given back with MADV_DONTNEED, and must be zero then
 *     mprotect   ranges are read-only from one pass to the next, unless they are rewritten
 *     all        all of these
 *
 * A line a pass; a page that is wrong is printed, and the exit status is 1.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "args.h"
#include "pages.h"

enum { BLOCK_PAGES = PAGES_PER_MIB, MOST_PAGES = 2 * BLOCK_PAGES };

enum mode { PLAIN = 0, MALLOC = 1, MMAP = 2, MREMAP = 4, MADVISE = 8, MPROTECT = 16, ALL = 31 };

static const struct {
    const char *name;
    enum mode mode;
} modes[] = {{"plain", PLAIN},     {"malloc", MALLOC},     {"mmap", MMAP}, {"mremap", MREMAP},
             {"madvise", MADVISE}, {"mprotect", MPROTECT}, {"all", ALL}};

struct block {
    unsigned char *start;
    int pages;
    bool from_malloc;                /* and then not page-aligned */
    uint32_t generations[MOST_PAGES]; /* 0: zeros */
};

static struct block *blocks;
static long block_count;
static uint64_t state = 1; /* of the generator that chooses what happens to which block */
static uint32_t generation;
static long zero_percent, text_percent;
static long kinds_seen[3];

static void give_up(const char *call)
{
    perror(call);
    exit(2);
}

static uint64_t page_number(const struct block *block, int page)
{
    return (uint64_t)(block - blocks) * MOST_PAGES + (uint64_t)page;
}

/* The contents of a page in a generation; says which kind it is. */
static enum page_kind make_page(unsigned char *page, uint64_t number, uint32_t of_generation)
{
    uint64_t seed = mix64(number << 32 | of_generation);
    enum page_kind kind = RANDOM_PAGE;
    if (of_generation == 0 || (long)(seed % 100) < zero_percent)
        kind = ZERO_PAGE;
    else if ((long)(seed % 100) < zero_percent + text_percent)
        kind = TEXT_PAGE;
    fill_page(page, kind, seed);
    return kind;
}

static void write_pages(struct block *block, int first, int end)
{
    for (int page = first; page < end; page++) {
        block->generations[page] = generation;
        make_page(block->start + page * PAGE_SIZE, page_number(block, page), generation);
    }
}

static void check_block(const struct block *block, long pass)
{
    static unsigned char right[PAGE_SIZE];
    for (int page = 0; page < block->pages; page++) {
        const unsigned char *found = block->start + page * PAGE_SIZE;
        kinds_seen[make_page(right, page_number(block, page), block->generations[page])]++;
        if (memcmp(found, right, PAGE_SIZE) == 0)
            continue;
        int at = 0;
        while (found[at] == right[at])
            at++;
        printf("pass %ld: page %llu, generation %u, at %p: byte %d is %02x, and should be %02x\n", pass,
               (unsigned long long)page_number(block, page), block->generations[page], (const void *)found, at,
               found[at], right[at]);
        exit(1);
    }
}

static void allocate(struct block *block, int pages, bool from_malloc)
{
    block->pages = pages;
    block->from_malloc = from_malloc;
    if (from_malloc) {
        block->start = malloc((size_t)pages * PAGE_SIZE);
        if (block->start == NULL)
            give_up("malloc");
        write_pages(block, 0, pages);
    } else {
        block->start =
            mmap(NULL, (size_t)pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block->start == MAP_FAILED)
            give_up("mmap");
        memset(block->generations, 0, sizeof block->generations);
    }
}

static void release(struct block *block)
{
    if (block->from_malloc)
        free(block->start);
    else if (munmap(block->start, (size_t)block->pages * PAGE_SIZE) != 0)
        give_up("munmap");
}

static void resize(struct block *block)
{
    int old = block->pages;
    int new = 1 + (int)random_below(&state, MOST_PAGES);
    void *start = block->from_malloc ? realloc(block->start, (size_t)new *PAGE_SIZE)
                                     : mremap(block->start, (size_t)old * PAGE_SIZE, (size_t)new *PAGE_SIZE,
                                              MREMAP_MAYMOVE);
    if (start == NULL || start == MAP_FAILED)
        give_up(block->from_malloc ? "realloc" : "mremap");
    block->start = start;
    block->pages = new;
    if (block->from_malloc && new > old)
        write_pages(block, old, new);
    for (int page = old; !block->from_malloc && page < new; page++)
        block->generations[page] = 0;
}

/* Some pages in a row, inside the block. */
static void choose_range(const struct block *block, int *first, int *end)
{
    *first = (int)random_below(&state, (uint64_t)block->pages);
    *end = *first + 1 + (int)random_below(&state, (uint64_t)(block->pages - *first));
}

static void drop_range(struct block *block)
{
    int first, end;
    choose_range(block, &first, &end);
    if (madvise(block->start + first * PAGE_SIZE, (size_t)(end - first) * PAGE_SIZE, MADV_DONTNEED) != 0)
        give_up("madvise");
    for (int page = first; page < end; page++)
        block->generations[page] = 0;
}

static void protect(struct block *block, int first, int end, int protection)
{
    if (mprotect(block->start + first * PAGE_SIZE, (size_t)(end - first) * PAGE_SIZE, protection) != 0)
        give_up("mprotect");
}

/* One thing, of those that the mode allows, happens to one block in four. */
static void change_block(struct block *block, enum mode mode)
{
    if (mode & MPROTECT && !block->from_malloc)
        protect(block, 0, block->pages, PROT_READ | PROT_WRITE);
    if (random_below(&state, 4) != 0)
        return;
    enum mode what = (enum mode)(1u << random_below(&state, 5));
    bool from_malloc = block->from_malloc;
    if (!(mode & what))
        return;
    if (what == MALLOC && from_malloc && random_below(&state, 2) == 0) {
        resize(block);
    } else if (what == MALLOC || what == MMAP) {
        release(block);
        allocate(block, 1 + (int)random_below(&state, MOST_PAGES), what == MALLOC);
    } else if (what == MREMAP && !from_malloc) {
        resize(block);
    } else if (what == MADVISE && !from_malloc) {
        drop_range(block);
    } else if (what == MPROTECT && !from_malloc) {
        int first, end;
        choose_range(block, &first, &end);
        protect(block, first, end, PROT_READ);
    }
}

/* Before the block is changed otherwise, since it may be read-only afterwards. */
static void rewrite(struct block *block, long percent, enum mode mode)
{
    if (mode & MPROTECT && !block->from_malloc)
        protect(block, 0, block->pages, PROT_READ | PROT_WRITE);
    for (int page = 0; page < block->pages; page++)
        if ((long)random_below(&state, 100) < percent)
            write_pages(block, page, page + 1);
}

int main(int argc, char **argv)
{
    block_count = number_argument(argc, argv, 1, 64, 1, 1 << 16);
    long passes = number_argument(argc, argv, 2, 0, 0, 1000000000);
    long rewrite_percent = number_argument(argc, argv, 3, 25, 0, 100);
    zero_percent = number_argument(argc, argv, 4, 25, 0, 100);
    text_percent = number_argument(argc, argv, 5, 50, 0, 100 - zero_percent);
    const char *mode_name = argc > 6 ? argv[6] : "plain";
    size_t m = 0;
    while (m < sizeof modes / sizeof *modes && strcmp(modes[m].name, mode_name) != 0)
        m++;
    if (m == sizeof modes / sizeof *modes) {
        fprintf(stderr, "patterns: no mode %s\n", mode_name);
        return EXIT_USAGE;
    }
    enum mode mode = modes[m].mode;

    setvbuf(stdout, NULL, _IOLBF, 0);
    blocks = calloc((size_t)block_count, sizeof *blocks);
    if (blocks == NULL)
        give_up("calloc");
    generation = 1;
    for (long i = 0; i < block_count; i++) {
        allocate(&blocks[i], BLOCK_PAGES, mode == MALLOC);
        write_pages(&blocks[i], 0, BLOCK_PAGES);
    }
    for (long pass = 1; passes == 0 || pass <= passes; pass++) {
        memset(kinds_seen, 0, sizeof kinds_seen);
        for (long i = 0; i < block_count; i++)
            check_block(&blocks[i], pass);
        printf("pass %ld: %ld pages right, %ld zero, %ld text, %ld random\n", pass,
               kinds_seen[ZERO_PAGE] + kinds_seen[TEXT_PAGE] + kinds_seen[RANDOM_PAGE], kinds_seen[ZERO_PAGE],
               kinds_seen[TEXT_PAGE], kinds_seen[RANDOM_PAGE]);
        generation++;
        for (long i = 0; i < block_count; i++) {
            rewrite(&blocks[i], rewrite_percent, mode);
            change_block(&blocks[i], mode);
        }
    }
    return 0;
}

/* Goes through new memory. First, as it is told: for each byte of standard input it writes to so many more pages, each
 * of which must be zero before, and then writes that byte back. Or by itself, while it replaces parts of it.
 *
 *     filling pages MIB COUNT STRIDE     every STRIDEth page, and round again, until all is written
 *     filling replaced MIB SEED ROUNDS   fills a part, then takes rights, frees, maps, moves or forgets some, and checks
 */
#include "show.h"
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>

enum { PAGE = 4096, RIGHTS = PROT_READ | PROT_WRITE, ANYWHERE = MAP_PRIVATE | MAP_ANONYMOUS };

static void must(int good, const char *what, long where)
{
    if (!good) {
        fprintf(stderr, "%s went wrong at %ld: %s\n", what, where, strerror(errno));
        exit(1);
    }
}

static uint64_t *at(char *memory, size_t page)
{
    return (uint64_t *)(memory + page * PAGE);
}

static int as_told(char *memory, size_t pages, size_t count, size_t stride)
{
    size_t page = 0, round = 0;
    char byte;
    while (read(0, &byte, 1) == 1) {
        for (size_t n = 0; n < count && round < stride; n++) {
            must(*at(memory, page) == 0, "a new page", page);
            *at(memory, page) = page + 1;
            page += stride;
            if (page >= pages)
                page = ++round;
        }
        must(write(1, &byte, 1) == 1, "write", 0);
    }
    for (size_t n = 0; n < pages; n++)
        must(*at(memory, n) == (n % stride < round || (n % stride == round && n < page) ? n + 1 : 0), "a page", n);
    return 0;
}

static uint64_t state;

static size_t below(size_t bound)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % bound;
}

/* The model is what each page has to have. */
static void replace(char *memory, uint64_t *model, char *of_file, size_t pages, int file, uint64_t round)
{
    size_t first = below(pages), count = 1 + below(pages - first);
    char *start = memory + first * PAGE;
    switch (below(6)) {
    case 0:
        must(munmap(start, count * PAGE) == 0, "munmap", round);
        /* and again, which makes it new */
    case 1:
        must(mmap(start, count * PAGE, RIGHTS, ANYWHERE | MAP_FIXED, -1, 0) == start, "mmap", round);
        break;
    case 2:
        if (memchr(of_file + first, 1, count)) /* would be read from there again */
            return;
        must(madvise(start, count * PAGE, MADV_DONTNEED) == 0, "madvise", round);
        break;
    case 3:
        must(mprotect(start, count * PAGE, PROT_NONE) == 0, "mprotect", round);
        must(mprotect(start, count * PAGE, RIGHTS) == 0, "mprotect", round);
        return;
    case 4:
        must(mmap(start, PAGE, RIGHTS, MAP_PRIVATE | MAP_FIXED, file, 0) == start, "mmap of a file", round);
        model[first] = 0x2020202020202020, of_file[first] = 1;
        return;
    case 5:
        must(mremap(start, count * PAGE, count * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + pages * PAGE)
             == memory + pages * PAGE, "mremap", round);
        for (size_t n = 0; n < count; n++)
            must(*at(memory + pages * PAGE, n) == model[first + n], "what was moved", first + n);
        must(mmap(start, count * PAGE, RIGHTS, ANYWHERE | MAP_FIXED, -1, 0) == start, "mmap", round);
        break;
    }
    memset(model + first, 0, count * sizeof *model);
    memset(of_file + first, 0, count);
}

static int replaced(char *memory, size_t pages, uint64_t rounds)
{
    uint64_t *model = calloc(pages, sizeof *model);
    char *of_file = calloc(pages, 1);
    int file = open("/tmp/spaces", O_RDWR | O_CREAT | O_TRUNC, 0600);
    char spaces[PAGE];
    memset(spaces, ' ', PAGE);
    must(write(file, spaces, PAGE) == PAGE, "write", 0);
    for (uint64_t round = 1; round <= rounds; round++) {
        if (round % 8 == 1) {
            must(mmap(memory, pages * PAGE, RIGHTS, ANYWHERE | MAP_FIXED, -1, 0) == memory, "mmap", round);
            memset(model, 0, pages * sizeof *model), memset(of_file, 0, pages);
        }
        size_t end = below(2) ? pages : below(pages + 1);
        for (size_t page = 0; page < end; page++) {
            must(*at(memory, page) == model[page], "a page", page);
            *at(memory, page) = model[page] = round << 32 | page;
        }
        replace(memory, model, of_file, pages, file, round);
        for (size_t page = 0; page < pages; page += 1 + below(64))
            must(*at(memory, page) == model[page], "a page afterwards", page);
    }
    puts("all right");
    return 0;
}

int main(int argc, char **argv)
{
    must(argc == 5, "the command line", argc);
    size_t size = strtoul(argv[2], NULL, 10) << 20;
    int replacing = !strcmp(argv[1], "replaced");
    char *memory = mmap(NULL, size, RIGHTS, ANYWHERE, -1, 0);
    must(memory != MAP_FAILED, "mmap", 0);
    if (!replacing)
        return as_told(memory, size / PAGE, strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
    state = 0x9e3779b97f4a7c15 * strtoul(argv[3], NULL, 10);
    return replaced(memory, size / PAGE / 2, strtoul(argv[4], NULL, 10));
}

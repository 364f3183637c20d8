/* Many small calls of all kinds, each of which must be carried out once: copies numbered lines from standard input to
 * standard output one by one, and between them changes its memory and checks it. Ends at the end of the input.
 *
 *     steps [any]      with "any", lines of any contents
 */
#include "show.h"
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

enum { PAGE = 4096, LINE = 8 };

static void must(int good, const char *what, int line)
{
    if (!good) {
        fprintf(stderr, "line %d: %s went wrong: %s\n", line, what, strerror(errno));
        exit(1);
    }
}

static void change_memory(int line)
{
    unsigned char *memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED, "mmap", line);
    must(memory[0] == 0 && memory[4 * PAGE - 1] == 0, "fresh memory", line);
    memset(memory, line, 4 * PAGE);
    must(mprotect(memory + PAGE, PAGE, PROT_READ) == 0, "mprotect", line);
    must(memory[PAGE] == (unsigned char)line, "memory", line);
    must(munmap(memory + 2 * PAGE, 2 * PAGE) == 0, "munmap", line);
    unsigned char *moved = mremap(memory, PAGE, 3 * PAGE, MREMAP_MAYMOVE);
    must(moved != MAP_FAILED && moved[PAGE - 1] == (unsigned char)line && moved[PAGE] == 0, "mremap", line);
    must(munmap(moved, 3 * PAGE) == 0 && munmap(memory + PAGE, PAGE) == 0, "munmap", line);
}

static void change_break(int line)
{
    static char *last;
    char *now = sbrk(0);
    must(!last || now == last, "the break", line);
    must(sbrk(line % 3 ? PAGE : -PAGE) == now, "sbrk", line);
    last = sbrk(0);
    must(last == now + (line % 3 ? PAGE : -PAGE), "the new break", line);
}

int main(int argc, char **argv)
{
    int any = argc > 1 && strcmp(argv[1], "any") == 0;
    char text[LINE + 1] = "", expected[LINE + 9];
    unsigned char bytes[16];
    struct timespec nap = {0, 50000};
    for (int line = 1;; line++) {
        for (int at = 0; at < LINE; at++) { /* byte by byte: a read carried out twice loses one */
            long got = read(0, text + at, 1);
            if (got == 0 && at == 0)
                return 0;
            must(got == 1, "read", line);
        }
        sprintf(expected, "%07d\n", line);
        must(any || strcmp(text, expected) == 0, "the line read", line);
        must(write(1, text, LINE) == LINE, "write", line);
        must(getrandom(bytes, sizeof bytes, 0) == sizeof bytes, "getrandom", line);
        change_break(line);
        if (line % 4 == 0)
            change_memory(line);
        if (line % 16 == 0)
            must(nanosleep(&nap, NULL) == 0, "nanosleep", line);
    }
}

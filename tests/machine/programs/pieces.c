/* Cuts its memory into ever more pieces, until there is no more; then uses it all the same. */
#include "show.h"
#include <sys/mman.h>

enum { PAGE = 4096, MOST = 70000 };

int main(void)
{
    char *memory = mmap(NULL, 2L * MOST * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    long cut = 0;
    while (cut < MOST && mprotect(memory + 2 * cut * PAGE, PAGE, PROT_READ) == 0)
        cut++;
    printf("%s after %s\n", cut < MOST ? strerrorname_np(errno) : "no error", cut > 1000 ? "many" : "few");
    memory[2 * cut * PAGE] = 1; /* the one that could not be cut is as it was */
    SHOW(mprotect(memory, 2L * MOST * PAGE, PROT_READ | PROT_WRITE));
    memory[0] = 1;
    SHOW(munmap(memory, 2L * MOST * PAGE));
    return 0;
}

/* hugealloc: asks for far more memory than there is, in every way there is to ask, and goes on with less.
 *
 *     hugealloc [GIB]      how much to ask for, 131,072 by default: the whole of an address space
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "args.h"
#include "errno_name.h"

static void report(const char *what, const void *result, const void *failure)
{
    printf("%s: %s\n", what, result == failure ? errno_name(errno) : "got it");
}

int main(int argc, char **argv)
{
    size_t size = (size_t)number_argument(argc, argv, 1, 131072, 1, 131072) << 30;
    int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    report("mmap", mmap(NULL, size, protection, flags, -1, 0), MAP_FAILED);
    report("malloc", malloc(size), NULL);
    report("sbrk", sbrk((intptr_t)size), (void *)-1);
    void *small = mmap(NULL, 4096, protection, flags, -1, 0);
    if (small == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    report("mremap", mremap(small, 4096, size, MREMAP_MAYMOVE), MAP_FAILED);
    report("mmap of nearly 2^64 bytes", mmap(NULL, (size_t)-4096, protection, flags, -1, 0), MAP_FAILED);

    char *modest = malloc(1 << 20);
    if (modest == NULL)
        return 1;
    memset(modest, 'x', 1 << 20);
    printf("a modest MiB: %s\n", modest[(1 << 20) - 1] == 'x' ? "works" : "does not work");
    free(modest);
    return 0;
}

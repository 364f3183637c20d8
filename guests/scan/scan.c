/* scan: reads a large array from end to end, again and again: the best that can happen to a read-ahead.
 *
 *     scan [MIB [PASSES [HOT_MIB]]]      PASSES 0: for ever
 *
 * With HOT_MIB, only the last pass, if there is one, goes over all of it; the others stay within its first part.
 * Each pass prints a checksum of all words, and the checksums of two passes differ.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "args.h"
#include "prng.h"

int main(int argc, char **argv)
{
    long mib = number_argument(argc, argv, 1, 64, 1, 1 << 16);
    long passes = number_argument(argc, argv, 2, 10, 0, 1000000000);
    long hot_mib = number_argument(argc, argv, 3, mib, 1, mib);
    setvbuf(stdout, NULL, _IOLBF, 0);
    uint64_t count = ((uint64_t)mib << 20) / sizeof(uint64_t);
    uint64_t hot = ((uint64_t)hot_mib << 20) / sizeof(uint64_t);
    uint64_t *words = mmap(NULL, (size_t)mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (uint64_t i = 0; i < count; i++)
        words[i] = mix64(i);
    for (long pass = 1; passes == 0 || pass <= passes; pass++) {
        uint64_t checksum = 0;
        uint64_t end = pass == passes ? count : hot;
        for (uint64_t i = 0; i < end; i++)
            checksum += words[i] ^ (i * (uint64_t)pass);
        printf("pass %ld checksum %016llx\n", pass, (unsigned long long)checksum);
    }
    return 0;
}

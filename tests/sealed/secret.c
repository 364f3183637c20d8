/* secret: makes a secret in its memory, which nobody told it, and keeps it there.
 *
 *     secret SEED
 *
 * The secret is 64 bytes that follow from the seed, many times over in 1 MiB. For each line on standard input it prints
 * a sum of all that, and of how many lines there were.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = 64, COPIES = 16384 };

static unsigned char memory[COPIES][SIZE];

static void make(unsigned char *secret, uint64_t state)
{
    for (int i = 0; i < SIZE; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        secret[i] = (unsigned char)(state >> 56);
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    make(memory[0], argc > 1 ? strtoull(argv[1], NULL, 10) : 1);
    for (int i = 1; i < COPIES; i++)
        memcpy(memory[i], memory[0], SIZE);
    printf("ready\n");
    unsigned lines = 0;
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n')
            continue;
        uint64_t sum = ++lines;
        for (int i = 0; i < COPIES; i++)
            for (int j = 0; j < SIZE; j++)
                sum = sum * 31 + memory[i][j];
        printf("%u %llx\n", lines, (unsigned long long)sum);
    }
    return 0;
}

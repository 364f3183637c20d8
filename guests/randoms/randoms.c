/* randoms: for each line on standard input, 32 bytes of getrandom(2) as hexadecimal digits. Two restores of one
 * checkpoint must not print the same line.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/random.h>

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n')
            continue;
        unsigned char bytes[32];
        if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) {
            perror("getrandom");
            return 1;
        }
        for (size_t i = 0; i < sizeof bytes; i++)
            printf("%02x", bytes[i]);
        putchar('\n');
    }
    return 0;
}

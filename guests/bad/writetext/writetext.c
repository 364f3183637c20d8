/* writetext: writes to its own code, or to a constant: both are read-only.
 *
 *     writetext text | constant
 */
#include <stdio.h>
#include <string.h>

static const char constant[] = "a constant";

__attribute__((noinline)) static void overwrite(volatile char *byte)
{
    *byte = 'X';
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 64;
    volatile char *target = (char *)constant;
    if (strcmp(argv[1], "text") == 0)
        __asm__("lea main(%%rip), %0" : "=r"(target));
    printf("about to overwrite %s\n", argv[1]);
    fflush(stdout);
    overwrite(target);
    puts("still alive");
    return 0;
}

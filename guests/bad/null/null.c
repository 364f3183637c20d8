/* null: writes through a null pointer. */
#include <stdio.h>

__attribute__((noinline)) static void write_through(volatile int *pointer)
{
    *pointer = 1;
}

int main(void)
{
    int *volatile nothing = NULL; /* volatile, so that the compiler does not know */
    puts("about to write to address 0");
    fflush(stdout);
    write_through(nothing);
    puts("still alive");
    return 0;
}

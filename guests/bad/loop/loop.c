/* loop: an endless loop that makes no system call and touches no memory. */
#include <stdio.h>

int main(void)
{
    puts("looping");
    fflush(stdout);
    for (;;)
        __asm__ volatile("");
}

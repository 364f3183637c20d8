/* stack: calls itself without end, until the stack is full. */
#include <stdio.h>

static volatile long end; /* 0: never reached; volatile, so that the compiler does not know */

__attribute__((noinline)) static long overflow_stack(long depth)
{
    volatile char frame[512];
    frame[0] = (char)depth;
    if (depth == end)
        return frame[0];
    return overflow_stack(depth + 1) + frame[0]; /* an addition after it, so that it is no loop */
}

int main(void)
{
    puts("about to overflow the stack");
    fflush(stdout);
    printf("still alive: %ld\n", overflow_stack(1));
    return 0;
}

/* div0: divides an integer by zero. */
#include <stdio.h>

__attribute__((noinline)) static int divide(int a, int b)
{
    int quotient = a, remainder;
    __asm__ volatile("cltd; idivl %2" : "+a"(quotient), "=&d"(remainder) : "r"(b) : "cc");
    return quotient;
}

int main(void)
{
    volatile int zero = 0;
    puts("about to divide by zero");
    fflush(stdout);
    printf("still alive: %d\n", divide(1, zero));
    return 0;
}

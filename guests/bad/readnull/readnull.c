/* readnull: reads a member of a structure through a null pointer: a low address that is not 0. */
#include <stdio.h>

struct account {
    char name[0x120];
    long balance;
};

__attribute__((noinline)) static long read_balance(const volatile struct account *account)
{
    return account->balance;
}

int main(void)
{
    struct account *volatile nobody = NULL; /* volatile, so that the compiler does not know */
    puts("about to read address 0x120");
    fflush(stdout);
    printf("still alive, and read %ld\n", read_balance(nobody));
    return 0;
}

/* illegal: executes an instruction that is none. */
#include <stdio.h>

__attribute__((noinline)) static void execute_nonsense(void)
{
    __asm__ volatile("ud2");
}

int main(void)
{
    puts("about to execute ud2");
    fflush(stdout);
    execute_nonsense();
    puts("still alive");
    return 0;
}

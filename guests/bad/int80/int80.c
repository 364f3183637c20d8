/* int80: makes a system call by the 32-bit door, `int $0x80`, whose numbers are others: write(2) is 4. A filter
 * that looks at numbers alone takes it for stat(2).
 */
#include <stdio.h>

/* Below 4 GiB, as the 32-bit call needs it: the program is not position-independent. */
static const char text[] = "written through int 0x80\n";

int main(void)
{
    int result;
    puts("about to use int 0x80");
    fflush(stdout);
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(4), "b"(1), "c"(text), "d"(sizeof text - 1)
                     : "r8", "r9", "r10", "r11", "memory", "cc"); /* old kernels clear them */
    puts(result == sizeof text - 1 ? "it worked" : "it did not work");
    return 0;
}

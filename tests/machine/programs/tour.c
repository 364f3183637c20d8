/* A fixed tour of system calls, without the C library's own: what --strace prints of it is known beforehand. */
#include <asm/unistd.h>
#define DATA ((char *)0x10000000)

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return number;
}

void _start(void)
{
    call(__NR_mmap, (long)DATA, 8192, 3, 0x32, -1, 0);
    for (int i = 0; i < 60; i++)
        DATA[i] = 'a' + i % 26;
    DATA[5] = '\n';
    call(__NR_write, 1, (long)DATA, 6, 0, 0, 0);
    call(__NR_write, 1, (long)DATA, 0, 0, 0, 0);
    call(__NR_write, 2, 0x1000, 10, 0, 0, 0);
    call(__NR_write, 77, (long)DATA, 60, 0, 0, 0);
    call(__NR_read, 0, (long)DATA, 100, 0, 0, 0);
    call(__NR_openat, -100, (long)"/etc/pass\"wd", 0x80000, 0, 0, 0);
    call(__NR_mprotect, (long)DATA, 4096, 1, 0, 0, 0);
    call(__NR_munmap, (long)DATA, 8192, 0, 0, 0, 0);
    call(__NR_clock_nanosleep, 1, 1, (long)(long[2]){0, 0}, 0, 0, 0);
    call(__NR_socket, 1, 2, 3, 0, 0, 0);
    call(__NR_brk, 1, 0, 0, 0, 0, 0) && call(333, 1, 2, 3, 4, 5, 6);
    call(__NR_exit_group, 7, 0, 0, 0, 0, 0);
}

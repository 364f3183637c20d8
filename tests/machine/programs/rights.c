/* rights: maps memory that is writable and executable, and makes memory so; a line for each, then it waits for input. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *both = mmap(NULL, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("mmap: %s\n", both == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    int changed = mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    printf("mprotect: %s\n", changed < 0 ? strerrorname_np(errno) : "changed");
    changed = mprotect(page, 4096, PROT_READ | PROT_EXEC);
    printf("one after the other: %s\n", changed < 0 ? strerrorname_np(errno) : "changed");
    void *much = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("16 MiB: %s\n", much == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    int file = open("/tmp/code", O_RDWR | O_CREAT, 0600);
    write(file, "code", 4);
    void *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE, file, 0);
    printf("a file: %s\n", code == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    printf("getppid: %d\n", syscall(SYS_getppid) < 0 ? errno : 0);
    getchar();
    return 0;
}

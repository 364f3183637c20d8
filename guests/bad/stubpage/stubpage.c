/* stubpage: writes, reads or executes at 0x1f0000, where a monitor may have a page of its own code in the address
 * space. Anywhere else there is nothing there.
 *
 *     stubpage write | read | jump | unmap | remap
 *
 * "jump" is there to run a `syscall` instruction that is not the program's own, and tries to make a directory
 * with it. "unmap" and "remap" try to be rid of the page, or to put their own in its place.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static volatile unsigned char *const stub = (volatile unsigned char *)0x1f0000;

__attribute__((noinline)) static void write_stub(void)
{
    *stub = 0x90;
}

__attribute__((noinline)) static void read_stub(void)
{
    printf("read %02x\n", *stub);
}

__attribute__((noinline)) static void jump_to_stub(void)
{
    long result = SYS_mkdir;
    __asm__ volatile("call *%1"
                     : "+a"(result)
                     : "r"(stub), "D"("made-through-the-stub"), "S"(0777L)
                     : "rcx", "r11", "memory", "cc");
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 64;
    printf("about to %s\n", argv[1]);
    fflush(stdout);
    if (strcmp(argv[1], "write") == 0)
        write_stub();
    else if (strcmp(argv[1], "read") == 0)
        read_stub();
    else if (strcmp(argv[1], "jump") == 0)
        jump_to_stub();
    else if (strcmp(argv[1], "unmap") == 0)
        munmap((void *)(uintptr_t)stub, 4096);
    else
        mmap((void *)(uintptr_t)stub, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    /* A monitor that lost its page would stumble over the next calls. */
    void *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (more == MAP_FAILED || munmap(more, 1 << 20) != 0)
        return 1;
    puts("went on");
    return 0;
}

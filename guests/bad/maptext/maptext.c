/* maptext: maps something else over a page of its own code, with MAP_FIXED or munmap, and then calls into it. A
 * program may do that to itself, and what it gets is what it asked for: never the old code, and nobody else's memory.
 *
 *     maptext data | code | nothing      what is there afterwards: zeros that may not be executed, zeros that may,
 *                                        or no memory at all
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* A page of code that holds one function, so that nothing else that runs is in it. */
int victim(void);
__asm__(".pushsection .text, \"ax\", @progbits\n"
        ".balign 4096\n"
        ".globl victim\n"
        ".type victim, @function\n"
        "victim: mov $42, %eax\n"
        "        ret\n"
        ".size victim, 4096\n"
        ".balign 4096\n"
        ".popsection\n");

int main(int argc, char **argv)
{
    if (argc != 2)
        return 64;
    void *page = (void *)victim;
    printf("the function returns %d\n", victim());
    if (strcmp(argv[1], "nothing") == 0) {
        if (munmap(page, 4096) != 0) {
            perror("munmap");
            return 1;
        }
        puts("unmapped");
    } else {
        int protection = PROT_READ | PROT_WRITE | (strcmp(argv[1], "code") == 0 ? PROT_EXEC : 0);
        if (mmap(page, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page) {
            perror("mmap");
            return 1;
        }
        const volatile unsigned char *bytes = page;
        int zeros = 0;
        for (int i = 0; i < 4096; i++)
            zeros += bytes[i] == 0;
        printf("mapped over: %d zero bytes\n", zeros);
    }
    fflush(stdout);
    /* Zeros are `add %al, (%rax)`: a write to address 0 if rax is 0. */
    long result = 0;
    __asm__ volatile("call *%1" : "+a"(result) : "r"(page) : "memory", "cc");
    printf("still alive: %ld\n", result);
    return 0;
}

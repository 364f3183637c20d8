/* jumpdata: calls an instruction that lies in data, on the stack or in allocated memory, where nothing may run.
 *
 *     jumpdata data | stack | heap
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RET = 0xc3 };

static unsigned char in_data[16] = {RET};

int main(int argc, char **argv)
{
    unsigned char on_stack[16] = {RET};
    unsigned char *on_heap = malloc(16);
    if (argc != 2 || on_heap == NULL)
        return 64;
    on_heap[0] = RET;
    unsigned char *code = strcmp(argv[1], "data") == 0 ? in_data : strcmp(argv[1], "stack") == 0 ? on_stack : on_heap;
    printf("about to call an instruction in the %s\n", argv[1]);
    fflush(stdout);
    __asm__ volatile("call *%0" : : "r"(code) : "memory");
    puts("still alive");
    return 0;
}

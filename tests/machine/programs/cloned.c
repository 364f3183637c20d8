/* Has a file open and mapped, waits until it is another guest, and tells what it has then, after a change of its own. */
#define _GNU_SOURCE
#include "../../../guests/include/memvm.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

int main(void)
{
    struct memvm_generation first, now;
    struct timespec moment = {0, 5000000};
    char text[32] = "";
    int fd = open("file", O_RDWR);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || map == MAP_FAILED || memvm_generation(&first))
        return 1;
    memcpy(map, "before", 6);
    puts("ready");
    fflush(stdout);
    while (!memvm_generation_changed(&first))
        nanosleep(&moment, NULL);
    memvm_generation(&now);
    if (pread(fd, text, 6, 0) != 6)
        return 2;
    printf("%s ", text);
    snprintf(map + 3, 16, "clone %u", now.clone);
    if (pread(fd, text, 10, 0) != 10)
        return 3;
    printf("%s\n", text);
    return 0;
}

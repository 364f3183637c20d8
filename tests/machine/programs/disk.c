/* The calls of memvm_disk.h. Arguments: "use" writes, reads and flushes; "read SECTOR" reads one; "forget" writes and ends
 * without a flush; "wait" writes, and reads it again for each line of standard input. */
#include "memvm_disk.h"
#include "show.h"
#include <stdlib.h>

static unsigned char buffer[4 << 20];

static void use(void)
{
    struct memvm_disk_info info;
    SHOW(memvm_disk_info(0, &info));
    printf("%llu %u %u %s\n", (unsigned long long)info.size, info.sector_size, info.flags, info.uuid);
    SHOW(memvm_disk_info(1, &info));
    SHOW(memvm_disk_info(-1, &info));
    SHOW(memvm_disk_info(0, NULL));
    size_t sector = info.sector_size;
    SHOW(memvm_disk_read(0, buffer, sector - 1, 0));
    SHOW(memvm_disk_read(0, buffer, sector, 1));
    SHOW(memvm_disk_read(0, buffer, sector, info.size));
    SHOW(memvm_disk_read(0, buffer, sector, (uint64_t)-sector));
    SHOW(memvm_disk_read(0, buffer, (size_t)-sector, 0));
    SHOW(memvm_disk_read(0, buffer, 4 * sector, info.size - sector));
    SHOW(memvm_disk_read(0, (void *)0x10, sector, 0));
    SHOW(memvm_disk_read(0, "constant", sector, 0));
    SHOW(memvm_disk_read(3, buffer, sector, 0));
    memset(buffer, 'x', 3 * sector);
    SHOW(memvm_disk_write(0, buffer, 3 * sector, sector));
    SHOW(memvm_disk_write(0, buffer, sector, info.size));
    SHOW(memvm_disk_write(0, buffer, 3 * sector, info.size - sector));
    SHOW(memvm_disk_write(0, buffer, 5, 0));
    SHOW(memvm_disk_write(0, (void *)0x10, sector, 0));
    memset(buffer, 0, sizeof buffer);
    SHOW(memvm_disk_read(0, buffer, sizeof buffer, 0));
    SHOW(buffer[2 * sector]);
    SHOW(memvm_disk_flush(0));
    SHOW(memvm_disk_flush(7));
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    memset(buffer, 'w', 4096);
    if (argc > 2) {
        SHOW(memvm_disk_read(0, buffer, 4096, 4096 * (uint64_t)atoi(argv[2])));
        SHOW(buffer[0]);
    } else if (strcmp(argv[1], "use") == 0) {
        use();
    } else {
        SHOW(memvm_disk_write(0, buffer, 4096, 0));
        memset(buffer, 0, 4096);
        for (int c; strcmp(argv[1], "wait") == 0 && (c = getchar()) != EOF;) {
            if (c != '\n')
                continue;
            SHOW(memvm_disk_read(0, buffer, 4096, 0));
            SHOW(buffer[4095]);
        }
    }
    return 0;
}

/* sendfile and copy_file_range between files: what is copied, which positions move, and what is refused. */
#include "show.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

static void contents(int fd)
{
    char buffer[64] = {0};
    ssize_t size = pread(fd, buffer, sizeof buffer - 1, 0);
    for (ssize_t i = 0; i < size; i++)
        if (!buffer[i]) buffer[i] = '.';
    printf("%zd bytes: %s\n", size, buffer);
}

int main(void)
{
    int from = open("from", O_RDWR | O_CREAT | O_TRUNC, 0600), to = open("to", O_RDWR | O_CREAT | O_TRUNC, 0600), ends[2];
    if (from < 0 || to < 0 || pipe(ends)) return 2;
    SHOW(write(from, "0123456789", 10));

    off_t at = 2;
    SHOW(sendfile(to, from, &at, 4));
    SHOW(at);
    SHOW(lseek(from, 0, SEEK_CUR));
    SHOW(lseek(to, 0, SEEK_CUR));
    SHOW(sendfile(to, from, NULL, 4)); /* it is at its end */
    SHOW(lseek(from, 7, SEEK_SET));
    SHOW(sendfile(to, from, NULL, 100));
    SHOW(lseek(from, 0, SEEK_CUR));
    SHOW(sendfile(to, from, NULL, 0));
    contents(to);
    at = -1;
    SHOW(sendfile(to, from, &at, 4));
    SHOW(sendfile(to, ends[0], NULL, 4));
    SHOW(sendfile(to, 99, NULL, 4));
    SHOW(sendfile(99, from, NULL, 4));
    SHOW(sendfile(to, from, (off_t *)8, 4));

    off_t here = 1, there = 12;
    SHOW(copy_file_range(from, &here, to, &there, 3, 0));
    SHOW(here);
    SHOW(there);
    contents(to);
    SHOW(lseek(from, 5, SEEK_SET));
    SHOW(lseek(to, 0, SEEK_SET));
    SHOW(copy_file_range(from, NULL, to, NULL, 2, 0));
    SHOW(lseek(from, 0, SEEK_CUR));
    SHOW(lseek(to, 0, SEEK_CUR));
    here = 100;
    SHOW(copy_file_range(from, &here, to, NULL, 2, 0));
    here = 0, there = 2;
    SHOW(copy_file_range(from, &here, from, &there, 5, 0)); /* it overlaps */
    there = 20;
    SHOW(copy_file_range(from, &here, from, &there, 5, 0));
    SHOW(copy_file_range(from, &here, to, &there, 5, 1));
    SHOW(copy_file_range(from, NULL, ends[1], NULL, 5, 0));
    contents(from);
    contents(to);
    int appending = open("to", O_WRONLY | O_APPEND), reading = open("to", O_RDONLY);
    SHOW(copy_file_range(from, NULL, appending, NULL, 5, 0));
    SHOW(copy_file_range(from, NULL, reading, NULL, 5, 0));
    SHOW(copy_file_range(appending, NULL, from, NULL, 5, 0));
    return 0;
}

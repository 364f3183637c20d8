/* Uses its standard streams in one of several ways:
 *
 *     stream copy SIZE       copies input to output with reads and writes of SIZE bytes, and says on standard error how
 *                            many calls of each it took
 *     stream fill SIZE       writes SIZE bytes of numbered lines with one write
 *     stream numbers COUNT   writes so many numbered lines, each with one write
 *     stream eager COUNT     the same without waiting: O_NONBLOCK, and poll when the stream is full
 *     stream terminal        tells about the terminal, then echoes a line in lower case with echo turned off
 */
#include "show.h"
#include <ctype.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static int copy(long size)
{
    char *buffer = malloc(size);
    int reads = 0, writes = 0;
    long got, done;
    for (; (got = read(0, buffer, size)) > 0; reads++)
        for (long at = 0; at < got; at += done, writes++)
            if ((done = write(1, buffer + at, got - at)) < 0)
                return fail("write");
    if (got < 0)
        return fail("read");
    fprintf(stderr, "%d reads, %d writes\n", reads, writes);
    return 0;
}

static int fill(long size)
{
    char *buffer = malloc(size + 16);
    for (long at = 0, line = 0; at < size; line++)
        at += sprintf(buffer + at, "%07ld\n", line);
    long done = write(1, buffer, size);
    fprintf(stderr, "wrote %ld\n", done);
    return done == size ? 0 : 1;
}

static int numbers(long count, int eager)
{
    char line[16];
    if (eager)
        fcntl(1, F_SETFL, O_NONBLOCK);
    for (long i = 0; i < count; i++) {
        int size = sprintf(line, "%07ld\n", i);
        for (int at = 0; at < size;) {
            long done = write(1, line + at, size - at);
            if (done < 0 && errno == EAGAIN) {
                struct pollfd output = {1, POLLOUT, 0};
                poll(&output, 1, -1);
            } else if (done < 0) {
                return fail("write");
            } else {
                at += done;
            }
        }
    }
    return 0;
}

static int terminal(void)
{
    struct winsize size;
    struct termios modes;
    char line[100];
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(isatty(0) && isatty(1) && isatty(2));
    SHOW(ioctl(0, TIOCGWINSZ, &size));
    printf("%d rows, %d columns\n", size.ws_row, size.ws_col);
    CHECK(tcgetpgrp(0) == getpgrp());
    SHOW(tcsetpgrp(0, getpgrp()));
    SHOW(tcsetpgrp(0, 77));
    CHECK(tcgetsid(0) == getsid(0));
    SHOW(lseek(0, 0, SEEK_CUR));
    SHOW(tcgetattr(0, &modes));
    CHECK(modes.c_lflag & ECHO);
    modes.c_lflag &= ~ECHO;
    SHOW(tcsetattr(0, TCSAFLUSH, &modes));
    SHOW(tcflush(0, TCIFLUSH));
    printf("ready\n");
    long got = read(0, line, sizeof line);
    for (long i = 0; i < got; i++)
        putchar(tolower(line[i]));
    return 0;
}

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "";
    long number = argc > 2 ? atol(argv[2]) : 1;
    if (!strcmp(way, "copy"))
        return copy(number);
    if (!strcmp(way, "fill"))
        return fill(number);
    if (!strcmp(way, "numbers") || !strcmp(way, "eager"))
        return numbers(number, way[0] == 'e');
    if (!strcmp(way, "terminal"))
        return terminal();
    return 64;
}

/* Waits for its input with epoll, level- or edge-triggered, and prints what comes. */
#include "show.h"
#include <sys/epoll.h>

int main(int argc, char **argv)
{
    char bytes[100];
    struct epoll_event event = {EPOLLIN | (argc > 1 ? EPOLLET : 0), {.u64 = 5}}, found;
    int epoll = epoll_create1(0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event) < 0)
        return 1;
    puts("holding");
    int ready = epoll_wait(epoll, &found, 1, -1);
    long size = read(0, bytes, sizeof bytes);
    printf("%d %x %llu %.*s\n", ready, found.events & EPOLLIN, (unsigned long long)found.data.u64, (int)size, bytes);
    return 0;
}

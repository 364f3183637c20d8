/* socket: tries to make sockets: of this machine, of the Internet, of the kernel, and a pair. */
#include <stdio.h>
#include <sys/socket.h>

#include "errno_name.h"

static void report(const char *what, int result)
{
    if (result < 0)
        printf("%s: refused: %s\n", what, errno_name(errno));
    else
        printf("%s: made\n", what);
}

int main(void)
{
    int pair[2];
    report("AF_UNIX", socket(AF_UNIX, SOCK_STREAM, 0));
    report("AF_UNIX pair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    report("AF_INET", socket(AF_INET, SOCK_STREAM, 0));
    report("AF_NETLINK", socket(AF_NETLINK, SOCK_RAW, 0));
    return 0;
}

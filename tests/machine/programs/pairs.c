/* Pairs of sockets: streams, datagrams and sequenced packets; what is carried along, and what comes when one end goes. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

enum { MS = 1000000 };

static int pair[2];
static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
static const char *const names[] = {"stream", "datagrams", "packets"};
static char bytes[1 << 20];

static int events_of(int fd)
{
    struct pollfd one = {fd, POLLIN | POLLOUT | POLLRDHUP | POLLRDNORM | POLLPRI, 0};
    return poll(&one, 1, 0) < 0 ? -1 : one.revents;
}

static int option(int fd, int which)
{
    int value = -7;
    socklen_t size = sizeof value;
    return getsockopt(fd, SOL_SOCKET, which, &value, &size) < 0 ? -1 : value;
}

static void say(long size)
{
    if (size < 0)
        printf("  %s\n", strerrorname_np(errno));
    else
        printf("  %ld: \"%.*s\"\n", size, (int)(size < 50 ? size : 50), bytes);
    memset(bytes, '.', 100);
}

static void make(int kind)
{
    if (socketpair(AF_UNIX, kind, 0, pair) < 0)
        perror("socketpair");
}

static void unmake(void)
{
    close(pair[0]);
    close(pair[1]);
}

static void errors(void)
{
    SHOW(socketpair(AF_INET, SOCK_STREAM, 0, pair) < 0);
    SHOW(socketpair(AF_UNIX, SOCK_RDM, 0, pair));
    SHOW(socketpair(AF_UNIX, SOCK_STREAM | 0x10000, 0, pair));
    SHOW(socketpair(AF_UNIX, SOCK_STREAM, 77, pair));
    SHOW(socketpair(AF_UNIX, SOCK_STREAM, 0, NULL));
    SHOW(send(1, bytes, 1, 0));
    SHOW(recv(77, bytes, 1, 0));
    SHOW(shutdown(1, SHUT_RD));
    make(SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    SHOW(fcntl(pair[0], F_GETFL) & ~O_LARGEFILE);
    SHOW(fcntl(pair[0], F_GETFD));
    SHOW(shutdown(pair[0], 3));
    SHOW(lseek(pair[0], 0, SEEK_SET));
    SHOW(listen(pair[0], 1));
    SHOW(accept(pair[0], NULL, NULL));
    struct sockaddr_un name;
    memset(&name, 1, sizeof name);
    socklen_t size = sizeof name;
    SHOW(getsockname(pair[0], (struct sockaddr *)&name, &size));
    SHOW(size);
    SHOW(name.sun_family);
    size = 1;
    SHOW(getpeername(pair[0], (struct sockaddr *)&name, &size));
    SHOW(size);
    SHOW(sendto(pair[0], "x", 1, 0, (struct sockaddr *)&name, sizeof(sa_family_t)));
    size = sizeof name;
    SHOW(recvfrom(pair[1], bytes, 1, 0, (struct sockaddr *)&name, &size));
    SHOW(write(pair[0], "x", 1));
    SHOW(recvfrom(pair[1], bytes, 1, 0, (struct sockaddr *)&name, &size));
    SHOW(size);
    struct stat stat;
    SHOW(fstat(pair[0], &stat));
    SHOW(stat.st_mode);
    unmake();
}

static void options(void)
{
    static const int asked[] = {SO_TYPE, SO_ERROR, SO_SNDBUF, SO_RCVBUF, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN,
                                SO_REUSEADDR, SO_KEEPALIVE, SO_PASSCRED, SO_BROADCAST, SO_RCVLOWAT, 99};
    make(SOCK_SEQPACKET);
    for (unsigned i = 0; i < sizeof asked / sizeof *asked; i++)
        SHOW(option(pair[0], asked[i]));
    int value = 10000;
    SHOW(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &value, sizeof value));
    SHOW(option(pair[0], SO_SNDBUF));
    value = 1;
    SHOW(setsockopt(pair[0], SOL_SOCKET, SO_RCVBUF, &value, sizeof value));
    SHOW(option(pair[0], SO_RCVBUF));
    SHOW(setsockopt(pair[0], SOL_SOCKET, SO_KEEPALIVE, &value, sizeof value));
    SHOW(option(pair[0], SO_KEEPALIVE));
    SHOW(setsockopt(pair[0], SOL_SOCKET, SO_KEEPALIVE, &value, 2));
    SHOW(setsockopt(pair[0], SOL_SOCKET, 99, &value, sizeof value));
    SHOW(setsockopt(pair[0], SOL_SOCKET, SO_TYPE, &value, sizeof value));
    SHOW(send(pair[0], bytes, 30000, MSG_DONTWAIT));
    struct ucred credentials;
    socklen_t size = sizeof credentials;
    SHOW(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &credentials, &size));
    CHECK(size == sizeof credentials && credentials.pid == getpid() && credentials.uid == getuid());
    struct timeval limit = {0, 20000};
    SHOW(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    say(recv(pair[0], bytes, 10, 0));
    say(read(pair[0], bytes, 10));
    unmake();
}

static void sending(int which)
{
    printf("--- %s\n", names[which]);
    make(kinds[which]);
    SHOW(events_of(pair[0]));
    SHOW(recv(pair[0], bytes, 10, MSG_DONTWAIT));
    SHOW(send(pair[1], "first", 5, 0));
    SHOW(write(pair[1], "second", 6));
    SHOW(events_of(pair[0]));
    int waiting;
    SHOW(ioctl(pair[0], FIONREAD, &waiting));
    SHOW(waiting);
    say(recv(pair[0], bytes, 3, MSG_PEEK));
    say(recv(pair[0], bytes, 3, MSG_PEEK | MSG_TRUNC));
    say(recv(pair[0], bytes, 3, 0));
    say(recv(pair[0], bytes, 100, 0));
    say(recv(pair[0], bytes, 100, MSG_DONTWAIT));
    SHOW(send(pair[1], "", 0, 0));
    SHOW(events_of(pair[0]));
    say(recv(pair[0], bytes, 100, MSG_DONTWAIT));
    struct iovec out[3] = {{"ab", 2}, {"", 0}, {"cdef", 4}}, in[2] = {{bytes, 3}, {bytes + 50, 10}};
    SHOW(writev(pair[1], out, 3));
    SHOW(readv(pair[0], in, 2));
    printf("  %.3s %.3s\n", bytes, bytes + 50);
    struct msghdr message = {.msg_iov = out, .msg_iovlen = 3};
    SHOW(sendmsg(pair[1], &message, 0));
    struct sockaddr_un name;
    char control[100];
    message = (struct msghdr){&name, sizeof name, in, 1, control, sizeof control, 77};
    SHOW(recvmsg(pair[0], &message, 0));
    SHOW(message.msg_flags);
    SHOW(message.msg_namelen);
    SHOW(message.msg_controllen);
    say(recv(pair[0], bytes, 100, MSG_DONTWAIT));
    SHOW(send(pair[1], "x", 1, MSG_OOB | 0) < 0 || which == 0);
    while (recv(pair[0], bytes, 100, MSG_DONTWAIT) > 0)
        ;
    message.msg_iovlen = 1025;
    SHOW(sendmsg(pair[1], &message, 0));
    struct mmsghdr several[3] = {{{.msg_iov = out, .msg_iovlen = 1}}, {{.msg_iov = out + 2, .msg_iovlen = 1}}};
    SHOW(sendmmsg(pair[1], several, 2, 0));
    SHOW(several[1].msg_len);
    several[0].msg_hdr.msg_iov = several[1].msg_hdr.msg_iov = several[2].msg_hdr.msg_iov = in + 1;
    several[2].msg_hdr.msg_iovlen = 1;
    SHOW(recvmmsg(pair[0], several, 3, MSG_DONTWAIT, NULL));
    SHOW(several[0].msg_len);
    SHOW(recvmmsg(pair[0], several, 3, MSG_DONTWAIT, NULL));
    unmake();
}

static void filling(int which)
{
    printf("--- %s\n", names[which]);
    make(kinds[which] | SOCK_NONBLOCK);
    long sent = 0, got = 0, part;
    while ((part = send(pair[1], bytes, 4000, 0)) > 0)
        sent += part;
    printf("%s\n", strerrorname_np(errno));
    CHECK(sent > 100000 && sent < 1000000);
    SHOW(events_of(pair[1]));
    while ((part = recv(pair[0], bytes, sizeof bytes, 0)) > 0)
        got += part;
    CHECK(got == sent);
    SHOW(events_of(pair[1]));
    SHOW(send(pair[1], bytes, 500000, 0) > 0);
    unmake();
}

static void *send_much(void *fd)
{
    for (int i = 0; i < 1 << 20; i++)
        bytes[i] = 'a' + i % 26;
    long sent = write((int)(long)fd, bytes, 1 << 20);
    close((int)(long)fd);
    return (void *)sent;
}

static void streaming(void)
{
    static char got[1 << 21];
    pthread_t thread;
    make(SOCK_STREAM);
    pthread_create(&thread, NULL, send_much, (void *)(long)pair[1]);
    SHOW(recv(pair[0], got, sizeof got, MSG_WAITALL));
    void *sent;
    pthread_join(thread, &sent);
    SHOW(sent);
    CHECK(memcmp(got, bytes, 1 << 20) == 0);
    SHOW(recv(pair[0], got, 1, 0));
    close(pair[0]);
}

static int pipes_broken;

static void on_pipe(int number)
{
    (void)number;
    pipes_broken++;
}

static void ending(int which)
{
    printf("--- %s\n", names[which]);
    for (int how = SHUT_RD; how <= SHUT_RDWR; how++) {
        make(kinds[which] | SOCK_NONBLOCK);
        send(pair[0], "left", 4, 0), send(pair[1], "left", 4, 0);
        SHOW(shutdown(pair[0], how));
        SHOW(events_of(pair[0]));
        SHOW(events_of(pair[1]));
        for (int end = 0; end < 2; end++) {
            SHOW(send(pair[end], "x", 1, MSG_NOSIGNAL));
            SHOW(recv(pair[end], bytes, 100, 0));
            SHOW(recv(pair[end], bytes, 100, 0));
            SHOW(write(pair[end], "x", 1));
        }
        unmake();
    }
    for (int unread = 0; unread < 2; unread++) {
        make(kinds[which] | SOCK_NONBLOCK);
        send(pair[1], "left", 4, 0);
        if (unread)
            send(pair[0], "unread", 6, 0);
        SHOW(close(pair[1]));
        SHOW(events_of(pair[0]));
        for (int i = 0; i < 3; i++)
            say(recv(pair[0], bytes, 100, 0));
        SHOW(events_of(pair[0]));
        SHOW(send(pair[0], "x", 1, 0));
        SHOW(send(pair[0], "x", 1, MSG_NOSIGNAL));
        SHOW(option(pair[0], SO_ERROR));
        close(pair[0]);
    }
    SHOW(pipes_broken);
}

/* A message with descriptors; returns what sendmsg says. */
static long send_rights(int fd, const int *rights, int count, const char *text)
{
    char control[CMSG_SPACE(300 * sizeof(int))];
    memset(control, 0, sizeof control);
    struct iovec out = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &out, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(part), rights, count * sizeof(int));
    return sendmsg(fd, &message, MSG_DONTWAIT);
}

/* Receives one; what came along, and the first of them. */
static int get_rights(int fd, int room, int flags)
{
    char control[CMSG_SPACE(8 * sizeof(int))];
    struct iovec in = {bytes, 100};
    struct msghdr message = {.msg_iov = &in, .msg_iovlen = 1, .msg_control = control, .msg_controllen = room};
    int first = -1;
    say(recvmsg(fd, &message, flags | MSG_DONTWAIT));
    printf("  flags %x, control %zu\n", message.msg_flags, message.msg_controllen);
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
        printf("  level %d, type %d, %zu bytes\n", part->cmsg_level, part->cmsg_type, part->cmsg_len);
        if (part->cmsg_type == SCM_RIGHTS)
            memcpy(&first, CMSG_DATA(part), sizeof first);
    }
    return first;
}

static void rights(int which)
{
    printf("--- %s\n", names[which]);
    make(kinds[which]);
    eventfd_t value = 0;
    int counter = eventfd(5, EFD_NONBLOCK), twice[2] = {counter, pair[0]}, bad[2] = {counter, 77}, many[260];
    SHOW(send_rights(pair[1], twice, 2, "two"));
    SHOW(send_rights(pair[1], twice, 1, "one"));
    SHOW(send(pair[1], "none", 4, 0));
    int copy = get_rights(pair[0], 100, MSG_PEEK);
    CHECK(copy > counter);
    close(copy);
    copy = get_rights(pair[0], CMSG_SPACE(2 * sizeof(int)), MSG_CMSG_CLOEXEC);
    SHOW(fcntl(copy, F_GETFD));
    close(counter);
    SHOW(eventfd_read(copy, &value));
    SHOW(value);
    int again = get_rights(pair[0], CMSG_SPACE(sizeof(int)), 0);
    SHOW(eventfd_write(again, 3));
    SHOW(eventfd_read(copy, &value));
    get_rights(pair[0], 100, 0);
    SHOW(send_rights(pair[1], bad, 2, "bad"));
    for (int i = 0; i < 260; i++)
        many[i] = copy;
    SHOW(send_rights(pair[1], many, 254, "many"));
    SHOW(send_rights(pair[1], many, 4, "cut"));
    get_rights(pair[0], CMSG_SPACE(2 * sizeof(int)), 0);
    SHOW(send_rights(pair[1], many, 1, "no room"));
    get_rights(pair[0], 0, 0);
    SHOW(send_rights(pair[1], many, 1, "read"));
    SHOW(read(pair[0], bytes, 100));
    int on = 1;
    setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    SHOW(send_rights(pair[1], many, 1, "with credentials"));
    get_rights(pair[0], 100, 0);
    /* An end that is nowhere but in its own queue. */
    SHOW(send_rights(pair[0], pair, 2, "both"));
    unmake();
}

static void *close_later(void *fd)
{
    struct timespec time = {0, 20 * MS};
    nanosleep(&time, NULL);
    close((int)(long)fd);
    return NULL;
}

static void *answer(void *fd)
{
    char byte;
    while (read((int)(long)fd, &byte, 1) == 1 && byte != 'q')
        byte++, write((int)(long)fd, &byte, 1);
    return NULL;
}

static void blocking(int which)
{
    pthread_t thread;
    char byte = 'a';
    make(kinds[which]);
    pthread_create(&thread, NULL, answer, (void *)(long)pair[1]);
    for (int i = 0; i < 10; i++)
        write(pair[0], &byte, 1), read(pair[0], &byte, 1);
    SHOW(byte);
    SHOW(write(pair[0], "q", 1));
    pthread_join(thread, NULL);
    struct pollfd one = {pair[0], POLLIN, 0};
    if (kinds[which] != SOCK_DGRAM) {
        pthread_create(&thread, NULL, close_later, (void *)(long)pair[1]);
        SHOW(poll(&one, 1, 60000));
        pthread_join(thread, NULL);
        SHOW(one.revents);
        SHOW(read(pair[0], &byte, 1));
    }
    unmake();
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    signal(SIGPIPE, on_pipe);
    errors();
    options();
    for (int which = 0; which < 3; which++) {
        sending(which);
        filling(which);
        ending(which);
        rights(which);
        blocking(which);
    }
    streaming();
    return 0;
}

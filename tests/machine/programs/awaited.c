/* Has something of every kind to wait for, and threads that wait; says so, waits for a line or the end of input, and
   prints what comes. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>

enum { MS = 1000000, MOST = 16, WAITERS = 6 };

static int count, semaphore, never, soon, far, heard, instance, outer, stream[2], packets[2], datagrams[2], ends[2], gone[2];
static int waited_count, waited_timer, waited_stream[2], waited_full[2], waited_epoll, waited_event, waited_poll;
static char bytes[4096];
static volatile int64_t burnt;

static int64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void put(int fd, uint64_t value)
{
    write(fd, &value, 8);
}

static uint64_t get(int fd)
{
    uint64_t value = 0;
    read(fd, &value, 8);
    return value;
}

static void set(int timer, long value_ms, long interval_ms)
{
    struct itimerspec time = {{interval_ms / 1000, interval_ms % 1000 * MS}, {value_ms / 1000, value_ms % 1000 * MS}};
    timerfd_settime(timer, 0, &time, NULL);
}

static void watch(int epoll, int fd, unsigned events, uint64_t data)
{
    struct epoll_event event = {events, {.u64 = data}};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        perror("epoll_ctl");
}

static void look(int epoll, int most)
{
    struct epoll_event found[MOST];
    int ready = epoll_wait(epoll, found, most, 0);
    printf("%d ready:", ready);
    for (int i = 0; i < ready; i++)
        printf(" %llx(%x)", (unsigned long long)found[i].data.u64, found[i].events);
    puts("");
}

static void send_with(int fd, const char *text, int right)
{
    char control[CMSG_SPACE(sizeof right)];
    struct iovec out = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &out, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(sizeof right);
    memcpy(CMSG_DATA(part), &right, sizeof right);
    SHOW(sendmsg(fd, &message, 0));
}

static int receive_with(int fd)
{
    char control[100];
    int right = -1;
    struct iovec in = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &in, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(fd, &message, MSG_DONTWAIT);
    if (CMSG_FIRSTHDR(&message))
        memcpy(&right, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof right);
    printf("%zd: %.*s\n", size, (int)size, bytes);
    return right;
}

/* Each of these waits across the save; what it got is its result. */

static void *wait_count(void *unused)
{
    return (void *)get(waited_count);
}

static void *wait_timer(void *unused)
{
    return (void *)get(waited_timer);
}

static void *wait_stream(void *unused)
{
    char all[10];
    return (void *)recv(waited_stream[0], all, sizeof all, MSG_WAITALL);
}

static void *wait_to_send(void *unused)
{
    static char much[1 << 20];
    return (void *)write(waited_full[0], much, sizeof much);
}

static void *wait_epoll(void *unused)
{
    struct epoll_event found;
    int ready = epoll_wait(waited_epoll, &found, 1, -1);
    return (void *)(ready * 0x100 + found.data.u64);
}

static void *wait_poll(void *unused)
{
    struct pollfd all[2] = {{waited_poll, POLLIN, 0}, {never, POLLIN, 0}};
    return (void *)(long)poll(all, 2, -1);
}

static void *(*const waiters[WAITERS])(void *) = {wait_count, wait_timer, wait_stream, wait_to_send, wait_epoll, wait_poll};

static void *burn(void *unused)
{
    while (now(CLOCK_THREAD_CPUTIME_ID) < 30 * MS)
        ;
    burnt = now(CLOCK_THREAD_CPUTIME_ID);
    wait_count(NULL);
    return (void *)(long)(now(CLOCK_THREAD_CPUTIME_ID) >= burnt);
}

int main(void)
{
    pthread_t threads[WAITERS], burner;
    void *result;
    sigset_t mine;
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR1);
    sigaddset(&mine, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &mine, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);

    count = eventfd(0, EFD_NONBLOCK), put(count, 0x1122334455667788);
    semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
    never = eventfd(0, 0);
    soon = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), set(soon, 1, 100000);
    far = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), set(far, 1000000, 5000);
    heard = signalfd(-1, &mine, SFD_NONBLOCK);
    raise(SIGUSR1);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 42});
    struct pollfd first = {soon, POLLIN, 0};
    poll(&first, 1, -1);

    socketpair(AF_UNIX, SOCK_STREAM, 0, stream);
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets);
    socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagrams);
    socketpair(AF_UNIX, SOCK_STREAM, 0, gone);
    pipe(ends);
    SHOW(write(stream[0], "received, left", 14));
    SHOW(read(stream[1], bytes, 10));
    SHOW(write(stream[0], " and more", 9));
    int carried = eventfd(7, 0), pipe_end = dup(ends[0]);
    send_with(packets[0], "a counter", carried);
    send_with(packets[0], "a pipe", pipe_end);
    send_with(packets[0], "my own end", packets[1]);
    SHOW(write(packets[0], "plain", 5));
    close(carried), close(pipe_end);
    SHOW(send(datagrams[1], "", 0, 0));
    SHOW(send(datagrams[1], "one", 3, 0));
    SHOW(shutdown(datagrams[1], SHUT_WR));
    SHOW(write(gone[0], "last words", 10));
    SHOW(write(gone[1], "unread", 6));
    SHOW(close(gone[0]));
    SHOW(write(ends[1], "piped", 5));
    struct timeval limit = {7, 500000};
    int size = 20000;
    SHOW(setsockopt(stream[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
    SHOW(setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    SHOW(setsockopt(stream[0], SOL_SOCKET, SO_PASSCRED, &size, sizeof size));

    instance = epoll_create1(EPOLL_CLOEXEC), outer = epoll_create1(0);
    watch(instance, count, EPOLLIN, 0x1);
    watch(instance, semaphore, EPOLLIN | EPOLLET, 0x2);
    watch(instance, ends[0], EPOLLIN | EPOLLET, 0x3);
    watch(instance, ends[1], EPOLLOUT | EPOLLONESHOT, 0x4);
    watch(instance, stream[1], EPOLLIN | EPOLLET, 0x5);
    watch(instance, never, EPOLLIN | EPOLLEXCLUSIVE, 0x6);
    watch(outer, instance, EPOLLIN | EPOLLET, 0x7);
    look(instance, MOST);
    look(outer, MOST);
    watch(instance, soon, EPOLLIN | EPOLLET, 0x8);
    watch(instance, gone[1], EPOLLIN | EPOLLET, 0x9);
    look(instance, 2);

    waited_count = eventfd(0, EFD_SEMAPHORE), waited_poll = eventfd(0, 0), waited_event = eventfd(0, 0);
    waited_timer = timerfd_create(CLOCK_MONOTONIC, 0);
    waited_epoll = epoll_create1(0);
    watch(waited_epoll, waited_event, EPOLLIN | EPOLLET, 0xA);
    socketpair(AF_UNIX, SOCK_STREAM, 0, waited_stream);
    socketpair(AF_UNIX, SOCK_STREAM, 0, waited_full);
    write(waited_stream[1], "half ", 5);
    set(waited_timer, 400, 0);
    for (int i = 0; i < WAITERS; i++)
        pthread_create(&threads[i], NULL, waiters[i], NULL);
    pthread_create(&burner, NULL, burn, NULL);
    struct pollfd one = {waited_full[1], POLLIN, 0};
    poll(&one, 1, -1);
    while (!burnt)
        sched_yield();
    puts("holding");
    fgets(bytes, sizeof bytes, stdin);

    look(instance, MOST);
    look(outer, MOST);
    put(semaphore, 1);
    SHOW(write(ends[1], "again", 5));
    look(instance, MOST);
    look(outer, MOST);
    SHOW(fcntl(count, F_GETFL) & O_NONBLOCK);
    printf("%llx\n", (unsigned long long)get(count));
    while (get(semaphore))
        puts("one more");
    printf("ticks %llu\n", (unsigned long long)get(soon));
    struct itimerspec left;
    SHOW(timerfd_gettime(soon, &left));
    CHECK(left.it_value.tv_sec >= 40 && left.it_value.tv_sec < 100 && left.it_interval.tv_sec == 100);
    SHOW(timerfd_gettime(far, &left));
    CHECK(left.it_value.tv_sec > 900 && left.it_value.tv_sec < 1000 && left.it_interval.tv_sec == 5);
    struct signalfd_siginfo signals[3];
    SHOW(read(heard, signals, sizeof signals) / sizeof *signals);
    printf("%d %d %d\n", signals[0].ssi_signo, signals[1].ssi_signo, signals[1].ssi_int);
    SHOW(raise(SIGUSR1));
    SHOW(read(heard, signals, sizeof signals) / sizeof *signals);

    SHOW(read(stream[1], bytes, sizeof bytes));
    printf("%.13s\n", bytes);
    SHOW(write(stream[1], "back", 4));
    SHOW(read(stream[0], bytes, sizeof bytes));
    socklen_t length = sizeof limit;
    SHOW(getsockopt(stream[0], SOL_SOCKET, SO_SNDTIMEO, &limit, &length));
    printf("%ld %ld\n", (long)limit.tv_sec, (long)limit.tv_usec);
    length = sizeof size;
    SHOW(getsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size, &length));
    SHOW(size);
    int got = receive_with(packets[1]);
    SHOW(get(got));
    got = receive_with(packets[1]);
    SHOW(read(got, bytes, 7));
    printf("%.7s\n", bytes);
    got = receive_with(packets[1]);
    close(packets[1]);
    receive_with(got);
    SHOW(recv(datagrams[0], bytes, 10, 0));
    SHOW(recv(datagrams[0], bytes, 10, 0));
    SHOW(recv(datagrams[0], bytes, 10, 0));
    SHOW(send(datagrams[1], "x", 1, MSG_NOSIGNAL));
    SHOW(read(gone[1], bytes, 100));
    SHOW(read(gone[1], bytes, 100));
    SHOW(read(gone[1], bytes, 100));

    /* All that wait wait still, but for the one whose time may have come. */
    put(waited_count, 1);
    put(waited_poll, 1);
    put(waited_event, 1);
    SHOW(write(waited_stream[1], "other", 5));
    long all = 0, part;
    while (all < 1 << 20 && (part = read(waited_full[1], bytes, sizeof bytes)) > 0)
        all += part;
    SHOW(all);
    put(waited_count, 1);
    for (int i = 0; i < WAITERS; i++) {
        pthread_join(threads[i], &result);
        printf("%d: %lx\n", i, (long)result);
    }
    pthread_join(burner, &result);
    SHOW(result);
    return 0;
}

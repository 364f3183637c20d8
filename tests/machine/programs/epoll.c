/* epoll: level and edge, once and exclusively, in each other; over counters, timers, signals, pipes, sockets, input.
   Standard input is an open, empty pipe. */
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

enum { MS = 1000000, MOST = 8 };

static int epoll;

static long control(int instance, int what, int fd, unsigned events, uint64_t data)
{
    struct epoll_event event = {events, {.u64 = data}};
    return epoll_ctl(instance, what, fd, &event);
}

static void show_found(const struct epoll_event *found, int count)
{
    printf("%d ready%s\n", count, count < 0 ? strerrorname_np(errno) : "");
    for (int i = 0; i < count; i++)
        printf("  %llx: %x\n", (unsigned long long)found[i].data.u64, found[i].events);
}

static void look(int instance, int most, int timeout)
{
    struct epoll_event found[MOST];
    show_found(found, epoll_wait(instance, found, most, timeout));
}

static void add_to(int fd, uint64_t value)
{
    write(fd, &value, 8);
}

static uint64_t take(int fd)
{
    uint64_t value = 0;
    read(fd, &value, 8);
    return value;
}

static void errors(void)
{
    struct epoll_event event = {EPOLLIN, {.u64 = 1}};
    SHOW(epoll_create(0));
    SHOW(epoll_create1(1));
    TRY(close(epoll_create(1)));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    SHOW(fcntl(epoll, F_GETFD));
    int counter = eventfd(0, 0), null = open("/dev/null", O_RDWR), other = epoll_create1(0);
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, counter, NULL));
    SHOW(epoll_ctl(77, EPOLL_CTL_ADD, counter, &event));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, 77, &event));
    SHOW(epoll_ctl(counter, EPOLL_CTL_ADD, epoll, &event));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, epoll, &event));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, null, &event));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_DEL, counter, NULL));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_MOD, counter, &event));
    SHOW(epoll_ctl(epoll, 4, counter, &event));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &event));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &event));
    SHOW(control(epoll, EPOLL_CTL_MOD, counter, EPOLLIN | EPOLLEXCLUSIVE, 1));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_DEL, counter, NULL));
    SHOW(control(epoll, EPOLL_CTL_ADD, counter, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
    SHOW(control(epoll, EPOLL_CTL_ADD, other, EPOLLIN | EPOLLEXCLUSIVE, 1));
    SHOW(control(epoll, EPOLL_CTL_ADD, counter, EPOLLIN | EPOLLEXCLUSIVE, 1));
    SHOW(control(epoll, EPOLL_CTL_MOD, counter, EPOLLIN, 1));
    SHOW(control(epoll, EPOLL_CTL_ADD, other, EPOLLIN, 1));
    SHOW(control(other, EPOLL_CTL_ADD, epoll, EPOLLIN, 1));
    SHOW(epoll_wait(epoll, &event, 0, 0));
    SHOW(epoll_wait(epoll, &event, -1, 0));
    SHOW(epoll_wait(counter, &event, 1, 0));
    SHOW(epoll_wait(77, &event, 1, 0));
    SHOW(epoll_wait(epoll, &event, 1, 0));
    struct timespec time = {0, 1000000000};
    SHOW(epoll_pwait2(epoll, &event, 1, &time, NULL));
    time.tv_nsec = 3 * MS;
    SHOW(epoll_pwait2(epoll, &event, 1, &time, NULL));
    SHOW(read(epoll, &event, 12));
    SHOW(write(epoll, &event, 12));
    SHOW(lseek(epoll, 0, SEEK_CUR));
    close(counter), close(null), close(other), close(epoll);
}

static void level_and_edge(void)
{
    epoll = epoll_create1(0);
    int level = eventfd(0, EFD_NONBLOCK), edge = eventfd(0, EFD_NONBLOCK), once = eventfd(0, EFD_NONBLOCK);
    SHOW(control(epoll, EPOLL_CTL_ADD, level, EPOLLIN, 0xA));
    SHOW(control(epoll, EPOLL_CTL_ADD, edge, EPOLLIN | EPOLLET, 0xB));
    SHOW(control(epoll, EPOLL_CTL_ADD, once, EPOLLIN | EPOLLONESHOT, 0xC));
    look(epoll, MOST, 0);
    add_to(once, 1), add_to(edge, 1), add_to(level, 1);
    look(epoll, MOST, -1);
    look(epoll, MOST, 0);
    add_to(edge, 1), add_to(once, 1);
    look(epoll, MOST, 0);
    look(epoll, 1, 0);
    take(level);
    look(epoll, MOST, 0);
    SHOW(control(epoll, EPOLL_CTL_MOD, once, EPOLLIN | EPOLLONESHOT, 0xD));
    SHOW(control(epoll, EPOLL_CTL_MOD, edge, EPOLLIN | EPOLLET, 0xE));
    look(epoll, 1, 0);
    look(epoll, MOST, 0);
    SHOW(control(epoll, EPOLL_CTL_MOD, edge, EPOLLIN | EPOLLOUT | EPOLLET, 0xF));
    look(epoll, MOST, 0);
    take(edge);
    look(epoll, MOST, 0);
    add_to(edge, 4), take(edge);
    look(epoll, MOST, 0);
    /* What is watched is the open file, not its number. */
    int copy = dup(level);
    SHOW(control(epoll, EPOLL_CTL_ADD, copy, EPOLLIN, 0x10));
    close(level);
    add_to(copy, 1);
    look(epoll, MOST, 0);
    SHOW(epoll_ctl(epoll, EPOLL_CTL_DEL, copy, NULL));
    look(epoll, MOST, 0);
    close(copy);
    look(epoll, MOST, 0);
    /* Three that are ready take turns. */
    int many[3];
    for (int i = 0; i < 3; i++) {
        many[i] = eventfd(1, 0);
        control(epoll, EPOLL_CTL_ADD, many[i], EPOLLIN, i);
    }
    for (int i = 0; i < 5; i++)
        look(epoll, 2, 0);
    close(epoll);
    for (int i = 0; i < 3; i++)
        close(many[i]);
    close(edge), close(once);
}

static void all_kinds(void)
{
    char bytes[100];
    int ends[2], pair[2];
    epoll = epoll_create1(0);
    pipe2(ends, O_NONBLOCK);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    SHOW(control(epoll, EPOLL_CTL_ADD, 0, EPOLLIN, 0x1));
    SHOW(control(epoll, EPOLL_CTL_ADD, ends[0], EPOLLIN | EPOLLET, 0x2));
    SHOW(control(epoll, EPOLL_CTL_ADD, ends[1], EPOLLOUT | EPOLLET, 0x3));
    SHOW(control(epoll, EPOLL_CTL_ADD, pair[0], EPOLLIN | EPOLLRDHUP | EPOLLET, 0x4));
    SHOW(control(epoll, EPOLL_CTL_ADD, pair[1], EPOLLIN | EPOLLOUT, 0x5));
    look(epoll, MOST, 0);
    SHOW(write(ends[1], "abc", 3));
    SHOW(write(pair[1], "abc", 3));
    look(epoll, MOST, 0);
    SHOW(write(ends[1], "abc", 3));
    look(epoll, MOST, 0);
    SHOW(read(ends[0], bytes, 4));
    look(epoll, MOST, 0);
    SHOW(read(pair[0], bytes, 100));
    SHOW(control(epoll, EPOLL_CTL_MOD, pair[1], EPOLLIN, 0x5));
    SHOW(write(pair[0], "back", 4));
    look(epoll, MOST, 0);
    SHOW(shutdown(pair[1], SHUT_WR));
    look(epoll, MOST, 0);
    SHOW(close(pair[1]));
    look(epoll, MOST, 0);
    SHOW(close(ends[1]));
    look(epoll, MOST, 0);
    SHOW(read(ends[0], bytes, 100));
    SHOW(read(ends[0], bytes, 100));
    look(epoll, MOST, 0);
    close(ends[0]), close(pair[0]);

    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), heard = signalfd(-1, &set, SFD_NONBLOCK);
    struct itimerspec time = {{0, 1000}, {0, 5 * MS}};
    SHOW(control(epoll, EPOLL_CTL_ADD, timer, EPOLLIN | EPOLLET, 0x6));
    SHOW(control(epoll, EPOLL_CTL_ADD, heard, EPOLLIN, 0x7));
    look(epoll, MOST, 0);
    SHOW(timerfd_settime(timer, 0, &time, NULL));
    look(epoll, MOST, -1);
    look(epoll, MOST, 30);
    CHECK(take(timer) > 0);
    look(epoll, MOST, -1);
    time.it_value.tv_nsec = 0;
    SHOW(timerfd_settime(timer, 0, &time, NULL));
    SHOW(raise(SIGUSR1));
    look(epoll, MOST, -1);
    struct signalfd_siginfo info;
    SHOW(read(heard, &info, sizeof info));
    look(epoll, MOST, 0);
    time.it_value.tv_nsec = 1000;
    SHOW(timerfd_settime(timer, 0, &time, NULL));
    struct timespec pause = {0, 3 * MS};
    struct epoll_event found[MOST];
    int count;
    do { /* until its time has come while nobody waits */
        nanosleep(&pause, NULL);
        count = epoll_wait(epoll, found, MOST, 0);
    } while (!count);
    show_found(found, count);
    close(timer), close(heard), close(epoll);
}

static void nested(void)
{
    int outer = epoll_create1(0), inner = epoll_create1(0), counter = eventfd(0, EFD_NONBLOCK), ends[2];
    char byte;
    pipe(ends);
    SHOW(control(outer, EPOLL_CTL_ADD, inner, EPOLLIN, 0x1));
    SHOW(control(inner, EPOLL_CTL_ADD, counter, EPOLLIN, 0x2));
    SHOW(control(inner, EPOLL_CTL_ADD, ends[0], EPOLLIN, 0x3));
    look(outer, MOST, 0);
    add_to(counter, 1);
    look(outer, MOST, 0);
    struct pollfd one = {outer, POLLIN | POLLOUT | POLLRDNORM, 0};
    SHOW(poll(&one, 1, -1));
    SHOW(one.revents);
    look(inner, MOST, 0);
    take(counter);
    look(outer, MOST, 0);
    SHOW(write(ends[1], "x", 1));
    look(outer, MOST, 60000);
    look(inner, MOST, 0);
    SHOW(read(ends[0], &byte, 1));
    SHOW(poll(&one, 1, 0));
    look(outer, MOST, 0);
    add_to(counter, 1);
    close(inner);
    look(outer, MOST, 0);
    close(outer), close(counter), close(ends[0]), close(ends[1]);
}

static int counters[3];

static void *wake(void *which)
{
    struct timespec time = {0, 20 * MS};
    nanosleep(&time, NULL);
    add_to(counters[(long)which], 1);
    return NULL;
}

static int over; /* How many have waited. */

static void *wait_long(void *instance)
{
    struct epoll_event found[MOST];
    long ready = epoll_wait((int)(long)instance, found, MOST, -1);
    __atomic_fetch_add(&over, 1, __ATOMIC_SEQ_CST);
    return (void *)ready;
}

/* Adds to a counter; until so many have waited, again and again if that may be needed. */
static void add_until(int counter, int many, int again)
{
    struct timespec time = {0, MS};
    add_to(counter, 1);
    while (__atomic_load_n(&over, __ATOMIC_SEQ_CST) < many) {
        nanosleep(&time, NULL);
        if (again)
            add_to(counter, 1);
    }
}

static void on_alarm(int number)
{
    (void)number;
}

static void waits(void)
{
    pthread_t thread, others[2];
    void *result;
    epoll = epoll_create1(0);
    for (int i = 0; i < 3; i++)
        counters[i] = eventfd(0, 0);
    SHOW(control(epoll, EPOLL_CTL_ADD, counters[0], EPOLLIN, 0x1));
    pthread_create(&thread, NULL, wake, (void *)0);
    look(epoll, MOST, -1);
    pthread_join(thread, NULL);
    take(counters[0]);
    look(epoll, MOST, 15);
    /* Added while somebody waits. */
    pthread_create(&thread, NULL, wait_long, (void *)(long)epoll);
    struct timespec time = {0, 20 * MS};
    nanosleep(&time, NULL);
    add_to(counters[1], 1);
    SHOW(control(epoll, EPOLL_CTL_ADD, counters[1], EPOLLIN | EPOLLET, 0x2));
    pthread_join(thread, &result);
    SHOW(result);
    /* An edge is for one of those who wait for the same instance; it takes two to wake both. */
    over = 0;
    for (int i = 0; i < 2; i++)
        pthread_create(&others[i], NULL, wait_long, (void *)(long)epoll);
    add_until(counters[1], 1, 0);
    add_until(counters[1], 2, 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(others[i], &result);
        SHOW(result);
    }
    /* Each of two instances may be told of what both want exclusively: one at least is. */
    int second = epoll_create1(0);
    SHOW(control(epoll, EPOLL_CTL_ADD, counters[2], EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 0x3));
    SHOW(control(second, EPOLL_CTL_ADD, counters[2], EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 0x4));
    over = 0;
    pthread_create(&others[0], NULL, wait_long, (void *)(long)epoll);
    pthread_create(&others[1], NULL, wait_long, (void *)(long)second);
    add_until(counters[2], 1, 0);
    add_until(counters[2], 2, 1);
    for (int i = 0; i < 2; i++) {
        pthread_join(others[i], &result);
        CHECK((long)result >= 1);
    }
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    close(counters[2]);
    look(epoll, MOST, 0);
    ualarm(20000, 20000); /* one of them comes while it waits */
    look(epoll, MOST, -1);
    ualarm(0, 0);
    sigset_t none, alarm_only;
    sigemptyset(&none);
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    sigprocmask(SIG_BLOCK, &alarm_only, NULL);
    ualarm(1000, 0);
    nanosleep(&time, NULL);
    struct epoll_event found[MOST];
    show_found(found, epoll_pwait(epoll, found, MOST, 60000, &none));
    SHOW(syscall(SYS_epoll_pwait, epoll, found, MOST, 0, &none, 4));
    close(epoll), close(second), close(counters[0]), close(counters[1]);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    errors();
    level_and_edge();
    all_kinds();
    nested();
    waits();
    return 0;
}

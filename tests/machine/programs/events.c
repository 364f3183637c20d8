/* Counters, timers and signals that are read: eventfd, timerfd and signalfd. Each fits into poll, and blocks. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>

enum { MS = 1000000 };

static int events_of(int fd, int asked)
{
    struct pollfd one = {fd, (short)asked, 0};
    return poll(&one, 1, 0) < 0 ? -1 : one.revents;
}

static void show_read(int fd)
{
    uint64_t value = 0;
    SHOW(read(fd, &value, 8));
    printf("  read %llu\n", (unsigned long long)value);
}

static long write_count(int fd, uint64_t value)
{
    return write(fd, &value, 8);
}

static int counter;

/* Both are for threads that let another one wait for a while. */
static void *add_later(void *unused)
{
    (void)unused;
    struct timespec time = {0, 20 * MS};
    nanosleep(&time, NULL);
    return (void *)write_count(counter, 5);
}

static void *take_later(void *unused)
{
    (void)unused;
    uint64_t value = 0;
    struct timespec time = {0, 20 * MS};
    nanosleep(&time, NULL);
    read(counter, &value, 8);
    return (void *)value;
}

static void counters(void)
{
    char bytes[16] = {1};
    counter = eventfd(0, EFD_NONBLOCK);
    SHOW(events_of(counter, POLLIN | POLLOUT | POLLRDNORM));
    show_read(counter);
    SHOW(write_count(counter, 3));
    SHOW(write_count(counter, 4));
    SHOW(events_of(counter, POLLIN | POLLOUT));
    SHOW(read(counter, bytes, 7));
    SHOW(read(counter, bytes, 0));
    SHOW(write(counter, bytes, 7));
    show_read(counter);
    SHOW(write_count(counter, -1));
    SHOW(write_count(counter, -2));
    SHOW(events_of(counter, POLLIN | POLLOUT));
    SHOW(write_count(counter, 0));
    SHOW(write_count(counter, 1));
    show_read(counter);
    SHOW(lseek(counter, 10, SEEK_SET));
    SHOW(ftruncate(counter, 0));
    SHOW(fcntl(counter, F_GETFL));
    struct stat stat;
    SHOW(fstat(counter, &stat));
    SHOW(stat.st_mode);
    char path[64], target[64] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", counter);
    SHOW(readlink(path, target, sizeof target - 1));
    printf("%s\n", target);
    int copy = dup(counter);
    SHOW(write_count(copy, 9));
    close(counter);
    show_read(copy);
    close(copy);

    counter = eventfd(2, EFD_SEMAPHORE);
    show_read(counter);
    show_read(counter);
    SHOW(events_of(counter, POLLIN | POLLOUT));
    pthread_t thread;
    pthread_create(&thread, NULL, add_later, NULL);
    struct pollfd one = {counter, POLLIN, 0};
    SHOW(poll(&one, 1, 10000));
    pthread_join(thread, NULL);
    show_read(counter);
    close(counter);
    counter = eventfd(0, 0);
    pthread_create(&thread, NULL, add_later, NULL);
    show_read(counter);
    pthread_join(thread, NULL);
    SHOW(write_count(counter, -2));
    pthread_create(&thread, NULL, take_later, NULL);
    SHOW(write_count(counter, 11));
    void *taken;
    pthread_join(thread, &taken);
    CHECK(taken == (void *)-2);
    fd_set input, output;
    FD_ZERO(&input);
    FD_ZERO(&output);
    FD_SET(counter, &input);
    FD_SET(counter, &output);
    struct timeval patience = {10, 0};
    SHOW(select(counter + 1, &input, &output, NULL, &patience));
    CHECK(FD_ISSET(counter, &input) && FD_ISSET(counter, &output));
    show_read(counter);
    close(counter);
    SHOW(eventfd(0, 2));
    TRY(close(eventfd(7, EFD_CLOEXEC)));
    TRY(close(syscall(SYS_eventfd, 7)));
}

static int64_t now(int clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static long set(int fd, int flags, int64_t value, int64_t interval)
{
    struct itimerspec new = {{interval / 1000000000, interval % 1000000000}, {value / 1000000000, value % 1000000000}};
    return timerfd_settime(fd, flags, &new, NULL);
}

static void show_left(int fd)
{
    struct itimerspec left = {{7, 7}, {7, 7}};
    SHOW(timerfd_gettime(fd, &left));
    int64_t value = left.it_value.tv_sec * 1000000000L + left.it_value.tv_nsec;
    printf("  interval %ld.%ld, %s\n", (long)left.it_interval.tv_sec, left.it_interval.tv_nsec,
           value == 0 ? "over" : value <= 1000000000000L ? "at most 1000 s" : "more");
}

static void timers(void)
{
    uint64_t ticks;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    show_left(timer);
    show_read(timer);
    SHOW(events_of(timer, POLLIN | POLLOUT));
    SHOW(set(timer, 0, 1000000000000L, 0));
    show_left(timer);
    struct pollfd one = {timer, POLLIN, 0};
    int64_t start = now(CLOCK_MONOTONIC);
    SHOW(set(timer, 0, 20 * MS, 0));
    SHOW(poll(&one, 1, -1));
    CHECK(now(CLOCK_MONOTONIC) - start >= 20 * MS);
    show_left(timer);
    SHOW(events_of(timer, POLLIN));
    show_read(timer);
    show_read(timer);
    SHOW(set(timer, TFD_TIMER_ABSTIME, now(CLOCK_MONOTONIC) - 5L * MS, 1000000000000L));
    SHOW(events_of(timer, POLLIN));
    show_left(timer);
    show_read(timer);
    show_left(timer);
    show_read(timer);
    SHOW(set(timer, TFD_TIMER_ABSTIME, now(CLOCK_MONOTONIC) - 10500L * MS, 1000L * MS));
    SHOW(read(timer, &ticks, 8));
    CHECK(ticks >= 11 && ticks < 60);
    SHOW(set(timer, TFD_TIMER_ABSTIME, 1, 0));
    SHOW(set(timer, 0, 0, 5));
    show_read(timer);
    show_left(timer);
    SHOW(read(timer, &ticks, 7));
    SHOW(write(timer, &ticks, 8));
    SHOW(set(timer, 4, 1, 1));
    SHOW(set(timer, 0, -1, 0));
    struct itimerspec bad = {{0, 1000000000}, {1, 0}}, old;
    SHOW(timerfd_settime(timer, 0, &bad, NULL));
    SHOW(timerfd_settime(0, 0, &bad, NULL));
    bad.it_interval.tv_nsec = 4;
    SHOW(timerfd_settime(0, 0, &bad, NULL));
    SHOW(timerfd_settime(timer, 0, &bad, &old));
    CHECK(old.it_interval.tv_nsec == 5 && old.it_value.tv_sec == 0 && old.it_value.tv_nsec == 0);
    close(timer);
    static const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    for (int i = 0; i < 3; i++) {
        timer = timerfd_create(clocks[i], TFD_CLOEXEC);
        SHOW(set(timer, 0, 5 * MS, 1));
        SHOW(read(timer, &ticks, 8));
        CHECK(ticks > 0);
        SHOW(set(timer, TFD_TIMER_ABSTIME, now(clocks[i]) + 5 * MS, 0));
        show_read(timer);
        SHOW(set(timer, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, now(clocks[i]) + 5 * MS, 0));
        show_read(timer);
        close(timer);
    }
    SHOW(timerfd_create(CLOCK_PROCESS_CPUTIME_ID, 0));
    SHOW(timerfd_create(CLOCK_MONOTONIC, 1));
    SHOW(timerfd_create(77, 0));
}

static void show_signals(int fd, int most)
{
    struct signalfd_siginfo found[4];
    memset(found, 0, sizeof found);
    long size = read(fd, found, most * sizeof *found);
    printf("read: %s\n", size < 0 ? strerrorname_np(errno) : "some");
    for (long i = 0; i < size / (long)sizeof *found; i++)
        printf("  %d: code %d, int %d, ptr %llx, overrun %d, %s%s\n", found[i].ssi_signo, found[i].ssi_code,
               found[i].ssi_int, (unsigned long long)found[i].ssi_ptr, found[i].ssi_overrun,
               found[i].ssi_pid == (unsigned)getpid() ? "mine " : found[i].ssi_pid ? "whose? " : "",
               found[i].ssi_uid == getuid() ? "me" : "");
}

static int heard;

static void *hear(void *unused)
{
    (void)unused;
    show_signals(heard, 1);
    return NULL;
}

static void signals(void)
{
    sigset_t set, all;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGALRM);
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    heard = signalfd(-1, &set, SFD_NONBLOCK);
    show_signals(heard, 1);
    SHOW(events_of(heard, POLLIN | POLLOUT));
    SHOW(raise(SIGUSR1));
    SHOW(kill(getpid(), SIGUSR2));
    SHOW(events_of(heard, POLLIN | POLLOUT));
    for (int i = 0; i < 3; i++) {
        union sigval value = {.sival_int = -i};
        SHOW(sigqueue(getpid(), SIGRTMIN, value));
    }
    show_signals(heard, 3);
    show_signals(heard, 4);
    show_signals(heard, 4);
    SHOW(read(heard, &set, 127));
    sigaddset(&set, SIGUSR2);
    SHOW(signalfd(heard, &set, 0) == heard);
    SHOW(events_of(heard, POLLIN));
    show_signals(heard, 4);
    SHOW(signalfd(0, &set, 0));
    SHOW(signalfd(-1, &set, 1));
    SHOW(syscall(SYS_signalfd4, -1, &set, 4, 0));
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM, .sigev_value.sival_ptr = &timer};
    SHOW(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec soon = {{0, 0}, {0, 10 * MS}};
    SHOW(timer_settime(timer, 0, &soon, NULL));
    struct pollfd one = {heard, POLLIN, 0};
    SHOW(poll(&one, 1, 10000));
    struct signalfd_siginfo found;
    SHOW(read(heard, &found, sizeof found));
    CHECK(found.ssi_code == SI_TIMER && found.ssi_ptr == (uint64_t)(uintptr_t)&timer && found.ssi_tid == 0);
    fcntl(heard, F_SETFL, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, hear, NULL);
    struct timespec time = {0, 20 * MS};
    nanosleep(&time, NULL);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    /* What was sent to a thread is that thread's alone. */
    SHOW(pthread_kill(pthread_self(), SIGUSR2));
    fcntl(heard, F_SETFL, O_NONBLOCK);
    pthread_create(&thread, NULL, hear, NULL);
    pthread_join(thread, NULL);
    show_signals(heard, 1);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    counters();
    timers();
    signals();
    return 0;
}

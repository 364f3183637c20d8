/* poll, select and the ways to sleep: never too short, and told what was left. Standard input is an open, empty pipe. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/select.h>
#include <time.h>

enum { MS = 1000000 };
/* A machine with other work lets one wait; what takes milliseconds for microseconds is a thousand times too long. */
static const int64_t LATE = 10000L * MS;

static int64_t now_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int64_t now(void) { return now_of(CLOCK_MONOTONIC); }

/* Whether so much is left, in ns, of a time that was asked for at `start`. The clocks may differ by a little. */
static int is_left(int64_t left, int64_t asked, int64_t start)
{
    return left <= asked && left >= asked - (now() - start) - MS;
}

/* TIMED(ms, call): the call's result, and whether it took so long, and not much longer. */
#define TIMED(ms, call)                                                              \
    do {                                                                             \
        int64_t start = now();                                                       \
        SHOW(call);                                                                  \
        int64_t took = now() - start;                                                \
        printf("  %s\n", took < (int64_t)(ms) * MS ? "TOO SHORT" : took > (int64_t)(ms) * MS + LATE ? "TOO LONG" : "in time"); \
    } while (0)

static void polling(void)
{
    struct pollfd one = {0, POLLIN, 77}, two[2] = {{0, POLLIN, 77}, {1, POLLOUT, 77}};
    TIMED(0, poll(&one, 1, 0));
    CHECK(one.revents == 0);
    TIMED(20, poll(&one, 1, 20));
    TIMED(0, poll(two, 2, -1));
    CHECK(two[0].revents == 0 && two[1].revents == POLLOUT);
    TIMED(15, poll(NULL, 0, 15));
    one.fd = -5;
    TIMED(5, poll(&one, 1, 5));
    one.fd = 1, one.events = (short)0xFFFF;
    TIMED(0, poll(&one, 1, -1));
    one.fd = 0, one.events = (short)0x8000;
    TIMED(5, poll(&one, 1, 5));
    SHOW(poll(NULL, 1, 0));
    SHOW(poll(&one, 1 << 24, 0));
    struct timespec time = {0, 12 * MS};
    one.events = POLLIN;
    TIMED(12, ppoll(&one, 1, &time, NULL));
    time.tv_nsec = 1000000000;
    SHOW(ppoll(&one, 1, &time, NULL));
    time.tv_nsec = 0, time.tv_sec = -1;
    SHOW(ppoll(&one, 1, &time, NULL));
    sigset_t none;
    sigemptyset(&none);
    time.tv_nsec = 0, time.tv_sec = 100;
    SHOW(ppoll(two, 2, &time, &none));
    SHOW(syscall(SYS_ppoll, two, 2, &time, &none, 4));
    int64_t start = now();
    SHOW(syscall(SYS_ppoll, two, 2, &time, NULL, 8));
    CHECK(is_left(time.tv_sec * 1000000000L + time.tv_nsec, 100000L * MS, start));
}

static void selecting(void)
{
    fd_set input, output, exceptions;
    struct timeval time = {0, 20000};
    FD_ZERO(&input);
    FD_SET(0, &input);
    FD_ZERO(&output);
    TIMED(20, select(1, &input, &output, NULL, &time));
    CHECK(!FD_ISSET(0, &input) && time.tv_sec == 0 && time.tv_usec == 0);
    FD_SET(0, &input);
    FD_SET(1, &output);
    time.tv_sec = 50;
    int64_t start = now();
    TIMED(0, select(2, &input, &output, NULL, &time));
    CHECK(!FD_ISSET(0, &input) && FD_ISSET(1, &output));
    CHECK(is_left(time.tv_sec * 1000000000L + time.tv_usec * 1000L, 50000L * MS, start));
    FD_ZERO(&exceptions);
    FD_SET(0, &exceptions);
    time.tv_sec = 0, time.tv_usec = 5000;
    TIMED(5, select(1, NULL, NULL, &exceptions, &time));
    /* Below 64, the least that a table of descriptors has: what lies beyond its end is not looked at, and where that
     * is depends on what the process's parent had open when it forked. */
    FD_SET(40, &input);
    SHOW(select(41, &input, NULL, NULL, &time));
    SHOW(select(-1, &input, NULL, NULL, &time));
    time.tv_sec = -1;
    SHOW(select(1, NULL, NULL, NULL, &time));
    struct timespec fine = {0, 7 * MS};
    sigset_t none;
    sigemptyset(&none);
    FD_ZERO(&input);
    FD_SET(0, &input);
    TIMED(7, pselect(1, &input, NULL, NULL, &fine, &none));
    TIMED(7, pselect(0, NULL, NULL, NULL, &fine, NULL));
}

static void sleeping(void)
{
    struct timespec time = {0, 10 * MS}, left;
    TIMED(10, nanosleep(&time, &left));
    TIMED(10, syscall(SYS_clock_nanosleep, CLOCK_REALTIME, 0, &time, NULL));
    time.tv_nsec = -1;
    SHOW(nanosleep(&time, NULL));
    time.tv_nsec = 1000000000;
    SHOW(nanosleep(&time, NULL));
    for (int clock = CLOCK_REALTIME; clock <= CLOCK_MONOTONIC; clock++) {
        clock_gettime(clock, &time);
        TIMED(0, syscall(SYS_clock_nanosleep, clock, TIMER_ABSTIME, &time, NULL));
        /* What is left of the 10 ms when the call begins is anybody's guess, so only the moment of its end counts. */
        time.tv_nsec += 10 * MS;
        if (time.tv_nsec >= 1000000000)
            time.tv_nsec -= 1000000000, time.tv_sec++;
        TIMED(0, syscall(SYS_clock_nanosleep, clock, TIMER_ABSTIME, &time, NULL));
        CHECK(now_of(clock) >= time.tv_sec * 1000000000L + time.tv_nsec);
    }
    time.tv_nsec = 0;
    SHOW(syscall(SYS_clock_nanosleep, 77, 0, &time, NULL));
    SHOW(syscall(SYS_clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &time, NULL));
}

int main(void)
{
    char byte;
    setvbuf(stdout, NULL, _IONBF, 0);
    polling();
    selecting();
    sleeping();
    SHOW(fcntl(0, F_SETFL, O_NONBLOCK));
    SHOW(read(0, &byte, 1));
    SHOW(read(0, &byte, 0));
    return 0;
}

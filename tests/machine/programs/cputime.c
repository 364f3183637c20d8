/* CPU time of a thread and of the whole process: each thread has its own, and those of ended threads still count. */
#include "show.h"
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <time.h>

enum { MS = 1000000 };

static int64_t now(clockid_t clock)
{
    struct timespec time;
    return clock_gettime(clock, &time) < 0 ? -1 : time.tv_sec * 1000000000L + time.tv_nsec;
}

static int64_t usage(int who)
{
    struct rusage used;
    getrusage(who, &used);
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000L + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000L;
}

static void work(clockid_t clock, int64_t until)
{
    while (now(clock) < until)
        for (volatile int i = 0; i < 100000; i++)
            ;
}

static pthread_barrier_t barrier;

static void *burn(void *unused)
{
    (void)unused;
    int64_t at_start = now(CLOCK_THREAD_CPUTIME_ID);
    CHECK(now(CLOCK_PROCESS_CPUTIME_ID) - at_start >= 40 * MS); /* the main thread's time is not in it */
    work(CLOCK_THREAD_CPUTIME_ID, 60 * MS);
    CHECK(usage(RUSAGE_THREAD) >= 59 * MS);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return NULL;
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    pthread_t thread;
    clockid_t its, mine;
    pthread_barrier_init(&barrier, NULL, 2);
    work(CLOCK_THREAD_CPUTIME_ID, 40 * MS);
    /* Which of two clocks is read first matters: what lies between may take any time, of a CPU, too, if it is virtual. */
    int64_t all_before = now(CLOCK_PROCESS_CPUTIME_ID), before = now(CLOCK_THREAD_CPUTIME_ID);
    pthread_create(&thread, NULL, burn, NULL);
    pthread_barrier_wait(&barrier);
    /* The other thread waits now. */
    int64_t own = now(CLOCK_THREAD_CPUTIME_ID) - before, of_all = now(CLOCK_PROCESS_CPUTIME_ID) - all_before;
    CHECK(of_all - own >= 59 * MS);
    CHECK(usage(RUSAGE_THREAD) < usage(RUSAGE_SELF));
    SHOW(pthread_getcpuclockid(thread, &its));
    CHECK(now(its) >= 60 * MS);
    SHOW(pthread_getcpuclockid(pthread_self(), &mine));
    CHECK(now(mine) >= before && now(mine) <= now(CLOCK_THREAD_CPUTIME_ID));
    SHOW(clock_getcpuclockid(getpid(), &mine));
    CHECK(now(mine) >= 99 * MS && now(mine) <= now(CLOCK_PROCESS_CPUTIME_ID));
    SHOW(clock_getcpuclockid(0, &mine));
    CHECK(now(mine) >= 99 * MS);
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    CHECK(now(CLOCK_PROCESS_CPUTIME_ID) >= 100 * MS);
    while (now(its) >= 0) /* it can be joined a moment before it is gone */
        sched_yield();
    SHOW(now(its));
    work(CLOCK_THREAD_CPUTIME_ID, now(CLOCK_THREAD_CPUTIME_ID) + 20 * MS);
    struct timespec time;
    SHOW(clock_getres(CLOCK_THREAD_CPUTIME_ID, &time));
    enum { NOBODY = 1 << 22 }; /* above all process ids: PID_MAX_LIMIT of linux/threads.h */
    SHOW(clock_gettime((clockid_t)(~NOBODY << 3 | 6), &time));
    SHOW(clock_gettime((clockid_t)(~NOBODY << 3 | 2), &time));
    return 0;
}

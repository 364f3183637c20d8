/* Threads, and the ways in which they wait for each other: what Linux gives, a guest gets. */
#include "show.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <time.h>

static pthread_mutex_t mutex;
static sem_t ready, go;
static volatile int heard_by, heard;
static pid_t main_tid;
static int word;

static long futex(int *at, int command, int value, void *timeout, int *second, int value3)
{
    return syscall(SYS_futex, at, command | FUTEX_PRIVATE_FLAG, value, timeout, second, value3);
}

static void init(int protocol, int robust, int type)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, protocol);
    pthread_mutexattr_setrobust(&attributes, robust);
    pthread_mutexattr_settype(&attributes, type);
    SHOW(pthread_mutex_init(&mutex, &attributes));
}

static void *die_with_lock(void *argument)
{
    (void)argument;
    pthread_mutex_lock(&mutex);
    return NULL;
}

static void *hold(void *argument)
{
    (void)argument;
    pthread_mutex_lock(&mutex);
    sem_post(&ready);
    sem_wait(&go);
    pthread_mutex_unlock(&mutex);
    return (void *)7;
}

static void in_thread(void *(*function)(void *), pthread_t *thread)
{
    SHOW(pthread_create(thread, NULL, function, NULL));
}

static void locks(void)
{
    static const int protocols[] = {PTHREAD_PRIO_NONE, PTHREAD_PRIO_INHERIT};
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        init(protocols[i], PTHREAD_MUTEX_STALLED, PTHREAD_MUTEX_ERRORCHECK);
        in_thread(hold, &thread);
        sem_wait(&ready);
        SHOW(pthread_mutex_trylock(&mutex));
        struct timespec soon;
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += 5000000;
        soon.tv_sec += soon.tv_nsec / 1000000000, soon.tv_nsec %= 1000000000;
        SHOW(pthread_mutex_timedlock(&mutex, &soon));
        sem_post(&go);
        SHOW(pthread_mutex_lock(&mutex));
        SHOW(pthread_mutex_lock(&mutex));
        SHOW(pthread_mutex_unlock(&mutex));
        void *result;
        SHOW(pthread_join(thread, &result));
        SHOW((long)result);
        init(protocols[i], PTHREAD_MUTEX_ROBUST, PTHREAD_MUTEX_NORMAL);
        in_thread(die_with_lock, &thread);
        SHOW(pthread_join(thread, NULL));
        SHOW(pthread_mutex_lock(&mutex));
        SHOW(pthread_mutex_consistent(&mutex));
        SHOW(pthread_mutex_unlock(&mutex));
        SHOW(pthread_mutex_lock(&mutex));
        SHOW(pthread_mutex_unlock(&mutex));
    }
}

static void note(int number)
{
    heard = number;
    heard_by = syscall(SYS_gettid) == main_tid ? 1 : 2;
}

static void *wait_for_signal(void *argument)
{
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    sem_post(&ready);
    while (!heard)
        pause();
    return argument;
}

static void signals(void)
{
    pthread_t thread;
    sigset_t all;
    sigfillset(&all);
    signal(SIGUSR1, note);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (int i = 0; i < 2; i++) {
        heard = heard_by = 0;
        in_thread(wait_for_signal, &thread);
        sem_wait(&ready);
        do { /* until it pauses: a signal before that is none */
            i ? kill(getpid(), SIGUSR1) : pthread_kill(thread, SIGUSR1);
            usleep(2000);
        } while (!heard_by);
        SHOW(pthread_join(thread, NULL));
        SHOW(heard_by);
    }
    sigemptyset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
}

static void *for_ever(void *argument)
{
    sem_post(&ready);
    for (;;)
        pause();
    return argument;
}

static void *busy(void *argument)
{
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    sem_post(&ready);
    for (;;)
        ;
    return argument;
}

static void cancelling(void)
{
    pthread_t thread;
    void *result;
    in_thread(for_ever, &thread);
    sem_wait(&ready);
    SHOW(pthread_cancel(thread));
    SHOW(pthread_join(thread, &result));
    CHECK(result == PTHREAD_CANCELED);
    in_thread(busy, &thread);
    sem_wait(&ready);
    SHOW(pthread_cancel(thread));
    SHOW(pthread_join(thread, &result));
    CHECK(result == PTHREAD_CANCELED);
}

static void *wait_for_word(void *argument)
{
    sem_post(&ready);
    return (void *)futex(&word, FUTEX_WAIT_BITSET, 0, NULL, NULL, (int)(long)argument);
}

static void words(void)
{
    struct timespec soon = {0, 2000000}, wrong = {0, -1};
    int other = 0;
    SHOW(futex(&word, FUTEX_WAIT, 5, NULL, NULL, 0));
    SHOW(futex(&word, FUTEX_WAIT, 0, &soon, NULL, 0));
    SHOW(futex(&word, FUTEX_WAIT, 0, &wrong, NULL, 0));
    SHOW(futex((int *)((char *)&word + 1), FUTEX_WAIT, 0, &soon, NULL, 0));
    SHOW(futex(&word, FUTEX_WAIT_BITSET, 0, NULL, NULL, 0));
    SHOW(futex(&word, FUTEX_WAKE, 1, NULL, NULL, 0));
    SHOW(futex(&word, FUTEX_CMP_REQUEUE, 1, (void *)1, &other, 1));
    SHOW(futex(&word, 77, 0, NULL, NULL, 0));
    SHOW(futex(&word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    pthread_t threads[3];
    for (long i = 0; i < 3; i++) {
        SHOW(pthread_create(&threads[i], NULL, wait_for_word, (void *)(1L << i)));
        sem_wait(&ready);
    }
    usleep(20000); /* they wait by now, or the sum below is found in several steps */
    long woken = 0;
    while (woken < 1)
        woken += futex(&word, FUTEX_WAKE_BITSET, 10, NULL, NULL, 2);
    SHOW(woken);
    SHOW(pthread_join(threads[1], NULL));
    for (woken = 0; woken < 2;)
        woken += futex(&word, FUTEX_REQUEUE, 0, (void *)10, &other, 0);
    SHOW(woken);
    SHOW(futex(&word, FUTEX_WAKE, 10, NULL, NULL, 0));
    /* word gets 0 | 6; was it 0? then wake of the second, too */
    SHOW(futex(&word, FUTEX_WAKE_OP, 1, (void *)10, &other, FUTEX_OP(FUTEX_OP_OR, 6, FUTEX_OP_CMP_EQ, 0)));
    SHOW(other);
    SHOW(pthread_join(threads[0], NULL));
    SHOW(pthread_join(threads[2], NULL));
}

static int first_lock, second_lock;

static long error_of(long result)
{
    return result < 0 ? errno : 0;
}

static void *lock_both(void *unused)
{
    (void)unused;
    futex(&second_lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
    sem_post(&ready);
    long error = error_of(futex(&first_lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    if (!error)
        futex(&first_lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
    futex(&second_lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
    return (void *)error;
}

/* Two locks, taken in the one order and in the other: one of the two is told (natively, the word may say that somebody
   waits a little before that one does). */
static void crosswise(void)
{
    pthread_t thread;
    void *theirs;
    SHOW(futex(&first_lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    in_thread(lock_both, &thread);
    sem_wait(&ready);
    while (!(__atomic_load_n(&first_lock, __ATOMIC_SEQ_CST) & FUTEX_WAITERS))
        sched_yield();
    long mine = error_of(futex(&second_lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    if (!mine)
        futex(&second_lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
    futex(&first_lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
    pthread_join(thread, &theirs);
    CHECK(mine + (long)theirs == EDEADLK);
    CHECK(!first_lock && !second_lock);
}

static void settings(void)
{
    struct sched_param param;
    int policy;
    SHOW(pthread_getschedparam(pthread_self(), &policy, &param));
    SHOW(policy);
    SHOW(sched_get_priority_max(SCHED_FIFO));
    SHOW(sched_get_priority_min(SCHED_OTHER));
    SHOW(sched_get_priority_min(77));
    SHOW(sched_yield());
    SHOW(syscall(SYS_get_robust_list, 0, NULL, NULL));
    SHOW(syscall(SYS_tgkill, getpid(), 99999999, 0));
    SHOW(syscall(SYS_tgkill, getpid(), main_tid, 0));
    SHOW(syscall(SYS_clone3, NULL, 8));
    SHOW(syscall(SYS_clone, 0x10000, NULL, NULL, NULL, 0)); /* CLONE_THREAD alone */
}

static void *last(void *argument)
{
    pthread_join((pthread_t)argument, NULL);
    puts("the main thread has ended");
    exit(0);
}

int main(void)
{
    main_tid = syscall(SYS_gettid);
    setvbuf(stdout, NULL, _IOLBF, 0);
    sem_init(&ready, 0, 0);
    sem_init(&go, 0, 0);
    settings();
    words();
    crosswise();
    locks();
    signals();
    cancelling();
    pthread_t thread;
    SHOW(pthread_create(&thread, NULL, last, (void *)pthread_self()));
    pthread_exit(NULL);
}

/* threads: threads that take turns, count together under a lock, and fill and check memory of their own meanwhile. A
 * line for each round in which all took part; a wait or a wake that is lost stops it, a lost count ends it.
 *
 *     threads [THREADS [ROUNDS [KIB]]]      ROUNDS 0: for ever; KIB of memory for each thread
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"

enum { MOST = 64, COUNTS = 50, STACK = 1 << 17 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t all;
static long threads, rounds, size, turn, counted;
static __thread uint64_t mine;

static void fail(const char *what, long thread)
{
    printf("thread %ld: %s\n", thread, what);
    exit(1);
}

static void work_through(uint64_t *memory, long thread, long round)
{
    for (long i = 0; i < size; i++) {
        if (memory[i] != (round ? (uint64_t)(thread << 40 ^ (round - 1) << 20 ^ i) : 0))
            fail("memory is wrong", thread);
        memory[i] = (uint64_t)(thread << 40 ^ round << 20 ^ i);
    }
}

static void *work(void *argument)
{
    long thread = (long)argument;
    uint64_t *memory = calloc(size, sizeof *memory);
    mine = thread;
    for (long round = 0; rounds == 0 || round < rounds; round++) {
        work_through(memory, thread, round);
        for (int i = 0; i < COUNTS; i++) {
            pthread_mutex_lock(&lock);
            counted++;
            pthread_mutex_unlock(&lock);
        }
        pthread_mutex_lock(&lock);
        while (turn % threads != thread)
            pthread_cond_wait(&turned, &lock);
        turn++;
        pthread_cond_broadcast(&turned);
        pthread_mutex_unlock(&lock);
        if (mine != (uint64_t)thread)
            fail("its own variable is another's", thread);
        if (pthread_barrier_wait(&all) == PTHREAD_BARRIER_SERIAL_THREAD) {
            if (counted != (round + 1) * threads * COUNTS || turn != (round + 1) * threads)
                fail("a count was lost", thread);
            printf("round %ld\n", round + 1);
        }
        pthread_barrier_wait(&all);
    }
    free(memory);
    return (void *)(thread + 1);
}

int main(int argc, char **argv)
{
    threads = number_argument(argc, argv, 1, 4, 1, MOST);
    rounds = number_argument(argc, argv, 2, 5, 0, 1000000000);
    size = number_argument(argc, argv, 3, 64, 1, 1 << 20) * 1024 / sizeof(uint64_t);
    setvbuf(stdout, NULL, _IOLBF, 0);
    pthread_t made[MOST];
    pthread_attr_t small; /* of 8 MiB each, the stacks of many need more than a small guest's memory */
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK);
    pthread_barrier_init(&all, NULL, threads);
    for (long i = 0; i < threads; i++)
        if (pthread_create(&made[i], &small, work, (void *)i) != 0)
            fail("cannot be made", i);
    for (long i = 0; i < threads; i++) {
        void *result;
        pthread_join(made[i], &result);
        if ((long)result != i + 1)
            fail("ended with something else", i);
    }
    return 0;
}

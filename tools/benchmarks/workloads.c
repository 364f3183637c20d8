/* Small workloads that time themselves, so that it does not count how long a guest takes to start:
 *
 *     workloads compute ROUNDS          arithmetic in registers and in a table that fits the cache
 *     workloads touch MIB               writes to each page of new memory
 *     workloads getppid CALLS           a system call that does next to nothing
 *     workloads clock CALLS             clock_gettime, as the C library makes it
 *     workloads threads ROUNDS          compute in one thread, then as much in each of two
 *
 * Standard output has nanoseconds: of all, for a call where there are calls; of threads, two lines. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TABLE = 1 << 12, PAGE = 4096 };

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void *compute(void *rounds) {
    uint64_t table[TABLE], state = 88172645463325252u;
    for (int i = 0; i < TABLE; i++) table[i] = (uint64_t)i * 0x9e3779b97f4a7c15u;
    for (uint64_t n = *(uint64_t *)rounds; n > 0; n--) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        table[state % TABLE] += state;
        state += table[(state >> 20) % TABLE];
    }
    static volatile uint64_t sink;
    sink = state;
    return NULL;
}

static uint64_t in_threads(int count, uint64_t rounds) {
    pthread_t threads[2];
    uint64_t began = now();
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, compute, &rounds)) exit(2);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    return now() - began;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const char *what = argv[1];
    uint64_t count = strtoull(argv[2], NULL, 10), began = now(), each = 1;
    if (!strcmp(what, "compute")) {
        compute(&count);
    } else if (!strcmp(what, "touch")) {
        size_t size = count << 20;
        char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return 2;
        for (size_t at = 0; at < size; at += PAGE) memory[at] = 1;
    } else if (!strcmp(what, "getppid")) {
        for (uint64_t n = 0; n < count; n++) syscall(SYS_getppid);
        each = count;
    } else if (!strcmp(what, "clock")) {
        for (uint64_t n = 0; n < count; n++) now();
        each = count;
    } else if (!strcmp(what, "threads")) {
        in_threads(2, count / 8); /* both CPUs awake */
        printf("%llu\n", (unsigned long long)in_threads(1, count));
        began = now();
        in_threads(2, count);
    } else {
        return 2;
    }
    printf("%g\n", (double)(now() - began) / (double)each);
}

/* The reference of the fault benchmark: missing pages of a memfd, answered by the shortest loop there is.
 *
 *     fault_reference PAGES CPU
 *
 * A child maps the memfd, registers it with a userfaultfd, hands that to its parent, and touches one page after the
 * other; between two touches it does what guests/faultbench does. The parent reads a message and copies the page
 * from a buffer, again and again. Both stay on one CPU.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include "args.h"
#include "clock.h"
#include "pages.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1 /* Linux 5.11 */
#endif

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

/* A descriptor and a number, to the other end of a socket: SCM_RIGHTS of unix(7). */
union control {
    char room[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static void send_fd(int socket, int fd, uint64_t number)
{
    union control control = {0};
    struct iovec part = {&number, sizeof number};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    check(sendmsg(socket, &message, 0) == sizeof number, "sendmsg");
}

static int receive_fd(int socket, uint64_t *number)
{
    union control control;
    struct iovec part = {number, sizeof *number};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    check(recvmsg(socket, &message, 0) == sizeof *number, "recvmsg");
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double ns_per_cycle(void)
{
    unsigned int cpu;
    int64_t start = clock_ns(CLOCK_MONOTONIC);
    uint64_t first = __rdtscp(&cpu);
    sleep_until(start + 20000000);
    uint64_t last = __rdtscp(&cpu);
    return (double)(clock_ns(CLOCK_MONOTONIC) - start) / (double)(last - first);
}

static void touch(int socket, int memory_fd, long pages)
{
    size_t size = (size_t)pages * PAGE_SIZE;
    unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    check(memory != MAP_FAILED, "mmap");
    madvise(memory, size, MADV_NOHUGEPAGE);
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    check(uffd >= 0, "userfaultfd");
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
    check(ioctl(uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
    struct uffdio_register range = {.range = {(uintptr_t)memory, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    check(ioctl(uffd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
    uint64_t *cycles = malloc((size_t)pages * sizeof *cycles);
    check(cycles != NULL, "malloc");
    memset(cycles, 1, (size_t)pages * sizeof *cycles);
    send_fd(socket, uffd, (uintptr_t)memory);
    char go;
    check(read(socket, &go, 1) == 1, "read");

    double ns = ns_per_cycle();
    for (long i = 0; i < pages; i++) {
        volatile uint64_t *word = (volatile uint64_t *)(memory + (size_t)i * PAGE_SIZE);
        unsigned int cpu;
        _mm_mfence();
        uint64_t before = __rdtscp(&cpu);
        _mm_lfence();
        (void)*word;
        _mm_mfence();
        cycles[i] = __rdtscp(&cpu) - before;
        static unsigned char right[PAGE_SIZE];
        fill_page(right, TEXT_PAGE, mix64((uint64_t)i));
        if (memcmp((const void *)word, right, PAGE_SIZE) != 0) {
            fprintf(stderr, "page %ld is wrong\n", i);
            exit(1);
        }
    }
    qsort(cycles, (size_t)pages, sizeof *cycles, by_size);
    printf("faults %ld p50 %.0f p90 %.0f p99 %.0f ns\n", pages, ns * (double)cycles[pages / 2],
           ns * (double)cycles[pages * 9 / 10], ns * (double)cycles[pages * 99 / 100]);
}

static void answer(int uffd, const unsigned char *contents, uint64_t base, long pages)
{
    for (long i = 0; i < pages; i++) {
        struct uffd_msg message;
        check(read(uffd, &message, sizeof message) == sizeof message, "read(userfaultfd)");
        uint64_t address = message.arg.pagefault.address & ~(uint64_t)(PAGE_SIZE - 1);
        struct uffdio_copy copy = {.dst = address, .src = (uintptr_t)contents + (address - base), .len = PAGE_SIZE};
        check(ioctl(uffd, UFFDIO_COPY, &copy) == 0, "UFFDIO_COPY");
    }
}

int main(int argc, char **argv)
{
    long pages = number_argument(argc, argv, 1, 10000, 1, 1 << 22);
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(number_argument(argc, argv, 2, 0, 0, CPU_SETSIZE - 1), &cpu);
    check(sched_setaffinity(0, sizeof cpu, &cpu) == 0, "sched_setaffinity");
    int memory_fd = memfd_create("reference", MFD_CLOEXEC), ends[2];
    check(memory_fd >= 0 && ftruncate(memory_fd, pages * PAGE_SIZE) == 0, "memfd_create");
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        touch(ends[1], memory_fd, pages);
        return 0;
    }
    close(ends[1]);
    unsigned char *contents = malloc((size_t)pages * PAGE_SIZE);
    check(contents != NULL, "malloc");
    for (long i = 0; i < pages; i++)
        fill_page(contents + (size_t)i * PAGE_SIZE, TEXT_PAGE, mix64((uint64_t)i));
    uint64_t base;
    int uffd = receive_fd(ends[0], &base);
    check(write(ends[0], "", 1) == 1, "write");
    answer(uffd, contents, base, pages);
    int status;
    check(waitpid(child, &status, 0) == child, "waitpid");
    return status == 0 ? 0 : 1;
}

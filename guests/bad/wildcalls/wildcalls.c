/* wildcalls: thousands of system calls with random numbers and random arguments, bad pointers among them. A sandbox
 * must come through it, and so must the program: it leaves out only what would rightly end, block or gut it.
 *
 *     wildcalls contained [SEED [CALLS]]
 *
 * Outside a sandbox it would do damage, so it does nothing unless the first argument says that it is in one.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "args.h"
#include "prng.h"

enum { X32_BIT = 0x40000000, HIGHEST_NUMBER = 480, ARENA_SIZE = 1 << 16, GUARD_SIZE = 1 << 20 };

/* Never called. */
static const int left_out[] = {
    SYS_exit, SYS_exit_group,
    SYS_kill, SYS_tkill, SYS_tgkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, 424 /* pidfd_send_signal */,
    SYS_alarm, SYS_setitimer, SYS_timer_create, SYS_timer_settime, /* a signal, later */
    SYS_rt_sigreturn, /* loads every register from the stack */
    SYS_arch_prctl, /* moves the thread's own storage */
    SYS_clone, 435 /* clone3 */, /* a second thread on the same stack */
    SYS_setrlimit, SYS_prlimit64, /* no processor time is left, or no memory */
    334 /* rseq */, /* the kernel ends a program whose area is not right */
    SYS_pause, /* for ever */
    SYS_seccomp, /* in strict mode the next call would be the last */
    SYS_dup2, SYS_dup3, SYS_close, 436 /* close_range */, /* of standard output */
    335, 336, /* uretprobe and uprobe: no seccomp filter is asked; the kernel itself ends a program that calls them */
};

/* May block, so every argument is a bad pointer: they fail before they wait. */
static const int may_block[] = {
    SYS_poll, SYS_select, SYS_nanosleep, SYS_wait4, SYS_rt_sigtimedwait, SYS_rt_sigsuspend, SYS_futex,
    SYS_epoll_wait, SYS_clock_nanosleep, SYS_waitid, SYS_pselect6, SYS_ppoll, SYS_epoll_pwait, 441 /* epoll_pwait2 */,
    449 /* futex_waitv */, 455 /* futex_wait */, SYS_msgrcv, SYS_msgsnd, SYS_semop, SYS_semtimedop,
    SYS_mq_timedsend, SYS_mq_timedreceive, SYS_io_getevents, 333 /* io_pgetevents */,
};

/* Change mappings: addresses in the arena or bad ones, lengths that stay inside it. */
static const int change_mappings[] = {
    SYS_mmap, SYS_mprotect, SYS_munmap, SYS_mremap, SYS_madvise, SYS_msync, SYS_mlock, SYS_munlock,
    SYS_remap_file_pages, SYS_shmat, SYS_pkey_mprotect, 440 /* process_madvise */, 453 /* map_shadow_stack */,
    462 /* mseal */,
};

#define IN(list, number) is_in(list, sizeof list / sizeof *list, number)

static bool is_in(const int *list, size_t count, int number)
{
    for (size_t i = 0; i < count; i++)
        if (list[i] == number)
            return true;
    return false;
}

static uint64_t state;
static uint64_t arena; /* the only memory that the calls may change; without access on both sides */

/* The low half is never a small number: taken for a count or a time it is refused, or far too many. */
static uint64_t bad_pointer(void)
{
    static const uint64_t pointers[] = {
        0xffff8000deadb001, /* the kernel's half */
        0x0000800087654000, /* not canonical */
        0xfffffffffffff000, /* the last page: an address that is an error number */
        0x00007fff8badf00d, /* nothing there, most likely */
        0xfffffffff0000000,
    };
    return pointers[random_below(&state, sizeof pointers / sizeof *pointers)];
}

static uint64_t arena_address(void)
{
    return arena + random_below(&state, ARENA_SIZE);
}

/* Anything but 1 and 2, so that nothing is written to standard output and standard error. */
static uint64_t any_argument(void)
{
    switch (random_below(&state, 8)) {
    case 0: return 0;
    case 1: return 3 + random_below(&state, 64);
    case 2: return UINT64_C(4) << random_below(&state, 61);
    case 3: return -(3 + random_below(&state, 4096));
    case 4: return next_random(&state);
    case 5: return bad_pointer();
    default: return arena_address();
    }
}

/* The arguments of a call that changes mappings: address, length, and what makes it stay in the arena. */
static void mapping_arguments(uint64_t arguments[6])
{
    static const uint64_t empty[] = {0, 1, 0x1000, 0xfff};
    uint64_t page = random_below(&state, ARENA_SIZE / 4096);
    uint64_t length = random_below(&state, ARENA_SIZE - page * 4096) + 1;
    switch (random_below(&state, 4)) {
    case 0: arguments[0] = bad_pointer(); break;
    case 1: arguments[0] = empty[random_below(&state, sizeof empty / sizeof *empty)]; break;
    default: arguments[0] = arena + page * 4096 + (random_below(&state, 4) == 0 ? 8 : 0);
    }
    arguments[1] = random_below(&state, 8) == 0 ? 0 : length;
    for (int i = 2; i < 6; i++)
        arguments[i] = random_below(&state, 2) == 0 ? random_below(&state, 64) : arguments[random_below(&state, 2)];
    /* The third is mremap's new length, and the fifth, its new address, may be the first: stay in the arena. */
    if (arguments[2] > length)
        arguments[2] = length;
}

static uint64_t call(uint64_t number, const uint64_t a[6])
{
    uint64_t result;
    register uint64_t r10 __asm__("r10") = a[3];
    register uint64_t r8 __asm__("r8") = a[4];
    register uint64_t r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void wild_call(void)
{
    uint64_t number = random_below(&state, HIGHEST_NUMBER);
    uint64_t arguments[6];
    int plain = (int)number;
    if (random_below(&state, 16) == 0) /* in no table: negative, or far beyond */
        number = 0x80000000u | (next_random(&state) & 0xffffffffu);
    else if (IN(left_out, plain))
        return;
    if (random_below(&state, 16) == 0)
        number |= X32_BIT;
    if (random_below(&state, 16) == 0) /* the kernel looks at the lower half alone */
        number |= next_random(&state) << 32;
    if (IN(change_mappings, plain)) {
        mapping_arguments(arguments);
    } else {
        bool blocks = IN(may_block, plain);
        for (int i = 0; i < 6; i++)
            arguments[i] = blocks ? bad_pointer() : any_argument();
    }
    call(number, arguments);
}

/* Memory of the program that no call has a right to change. */
static unsigned char untouched[1 << 16];

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "contained") != 0) {
        puts("wildcalls makes random system calls: run it in a sandbox, as \"wildcalls contained\"");
        return EXIT_USAGE;
    }
    state = (uint64_t)number_argument(argc, argv, 2, 1, 0, 1000000000);
    long calls = number_argument(argc, argv, 3, 5000, 1, 1000000000);
    memset(untouched, 0x5a, sizeof untouched);
    unsigned char *reserved = mmap(NULL, 2 * GUARD_SIZE + ARENA_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED || mprotect(reserved + GUARD_SIZE, ARENA_SIZE, PROT_READ | PROT_WRITE) != 0) {
        perror("wildcalls: memory");
        return 1;
    }
    arena = (uint64_t)(uintptr_t)reserved + GUARD_SIZE;
    for (long i = 0; i < calls; i++)
        wild_call();
    for (size_t i = 0; i < sizeof untouched; i++) {
        if (untouched[i] != 0x5a) {
            printf("byte %zu of memory that no call was given has changed\n", i);
            return 1;
        }
    }
    printf("done: %ld calls\n", calls);
    return 0;
}

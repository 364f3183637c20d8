/* Signal handlers: when they run, on which stack, with what blocked, and what they find of the interrupted code. */
#include "show.h"
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <poll.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

static volatile sig_atomic_t heard, depth, deepest, order[16], count;
static siginfo_t last;
static sigset_t blocked_inside;
static char *inside;

static void note(int number)
{
    heard = number;
    if (count < 16)
        order[count++] = number;
}

static void with_info(int number, siginfo_t *info, void *context)
{
    char here;
    note(number);
    last = *info;
    inside = &here;
    sigprocmask(SIG_SETMASK, NULL, &blocked_inside);
    CHECK(((ucontext_t *)context)->uc_mcontext.gregs[REG_RSP] != 0);
    CHECK(((unsigned long)__builtin_frame_address(0) & 15) == 0);
}

static void nested(int number)
{
    depth++;
    if (depth > deepest)
        deepest = depth;
    if (number == SIGUSR1)
        raise(SIGUSR2);
    note(number);
    depth--;
}

static void set(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigemptyset(&action.sa_mask);
    SHOW(sigaction(number, &action, NULL));
}

static void set_info(int number, int flags, int also_blocked)
{
    struct sigaction action = {.sa_sigaction = with_info, .sa_flags = flags | SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    if (also_blocked)
        sigaddset(&action.sa_mask, also_blocked);
    SHOW(sigaction(number, &action, NULL));
}

static void at_once(void)
{
    set_info(SIGUSR1, 0, SIGUSR2);
    heard = 0;
    SHOW(raise(SIGUSR1));
    SHOW(heard);
    CHECK(last.si_signo == SIGUSR1 && last.si_code == SI_TKILL && last.si_pid == getpid());
    CHECK(sigismember(&blocked_inside, SIGUSR1) && sigismember(&blocked_inside, SIGUSR2));
    CHECK(!sigismember(&blocked_inside, SIGTERM));
    heard = 0;
    SHOW(kill(getpid(), SIGUSR1));
    SHOW(heard);
    CHECK(last.si_code == SI_USER);
    union sigval value = {.sival_int = 77};
    SHOW(sigqueue(getpid(), SIGUSR1, value));
    CHECK(last.si_code == SI_QUEUE && last.si_value.sival_int == 77);
    set(SIGUSR1, note, SA_RESETHAND | SA_NODEFER);
    SHOW(raise(SIGUSR1));
    struct sigaction now;
    SHOW(sigaction(SIGUSR1, NULL, &now));
    CHECK(now.sa_handler == SIG_DFL);
}

static void while_blocked(void)
{
    sigset_t set_, waiting, none;
    sigemptyset(&none);
    sigemptyset(&set_);
    sigaddset(&set_, SIGUSR1);
    sigaddset(&set_, SIGRTMIN);
    sigaddset(&set_, SIGRTMIN + 1);
    set(SIGUSR1, note, 0);
    set(SIGRTMIN, note, 0);
    set(SIGRTMIN + 1, note, 0);
    count = heard = 0;
    SHOW(sigprocmask(SIG_BLOCK, &set_, NULL));
    raise(SIGRTMIN + 1), raise(SIGRTMIN), raise(SIGUSR1), raise(SIGUSR1), raise(SIGRTMIN);
    SHOW(heard);
    SHOW(sigpending(&waiting));
    CHECK(sigismember(&waiting, SIGUSR1) && sigismember(&waiting, SIGRTMIN) && !sigismember(&waiting, SIGUSR2));
    SHOW(sigprocmask(SIG_UNBLOCK, &set_, NULL));
    for (int i = 0; i < count; i++)
        printf("%d ", order[i]);
    puts("");
    SHOW(sigprocmask(SIG_BLOCK, &set_, NULL));
    raise(SIGUSR1);
    signal(SIGUSR1, SIG_IGN);
    SHOW(sigpending(&waiting));
    CHECK(!sigismember(&waiting, SIGUSR1));
    siginfo_t info;
    raise(SIGRTMIN);
    SHOW(sigwaitinfo(&set_, &info) == SIGRTMIN);
    CHECK(info.si_signo == SIGRTMIN);
    struct timespec soon = {0, 1000000};
    SHOW(sigtimedwait(&set_, &info, &soon));
    set(SIGUSR1, note, 0);
    raise(SIGUSR1);
    heard = 0;
    SHOW(sigsuspend(&none));
    SHOW(heard);
    SHOW(sigprocmask(SIG_SETMASK, NULL, &waiting));
    CHECK(sigismember(&waiting, SIGUSR1));
    SHOW(sigprocmask(SIG_SETMASK, &none, NULL));
}

static void nesting(void)
{
    set(SIGUSR1, nested, 0);
    set(SIGUSR2, nested, 0);
    count = 0;
    raise(SIGUSR1);
    SHOW(deepest);
    printf("%d then %d\n", order[0], order[1]);
}

static char stack[1 << 16];

static void stacks(void)
{
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    SHOW(sigaltstack(&alternate, NULL));
    set_info(SIGUSR1, SA_ONSTACK, 0);
    raise(SIGUSR1);
    CHECK(inside >= stack && inside < stack + sizeof stack);
    set_info(SIGUSR1, 0, 0);
    raise(SIGUSR1);
    CHECK(inside < stack || inside >= stack + sizeof stack);
}

static sigjmp_buf back;

static void leave(int number, siginfo_t *info, void *context)
{
    last = *info;
    siglongjmp(back, number);
}

static void faults(void)
{
    struct sigaction action = {.sa_sigaction = leave, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    volatile int *nowhere = (int *)16, zero = 0, many = 77;
    int number = sigsetjmp(back, 1);
    if (!number)
        *nowhere = 1;
    SHOW(number);
    CHECK(last.si_addr == (void *)16 && last.si_code == SEGV_MAPERR);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    number = sigsetjmp(back, 1);
    if (!number)
        page[5] = 1;
    SHOW(number);
    CHECK(last.si_addr == page + 5 && last.si_code == SEGV_ACCERR);
    number = sigsetjmp(back, 1);
    if (!number)
        zero = many / zero;
    SHOW(number);
    CHECK(last.si_code == FPE_INTDIV);
    number = sigsetjmp(back, 1);
    if (!number)
        __asm__ volatile("ud2");
    SHOW(number);
}

static void mend(int number, siginfo_t *info, void *context)
{
    ucontext_t *at = context;
    heard = number;
    if (at->uc_mcontext.gregs[REG_TRAPNO] == 14 && at->uc_mcontext.gregs[REG_ERR] & 2)
        mprotect((void *)((unsigned long)info->si_addr & -4096UL), 4096, PROT_READ | PROT_WRITE);
    else
        at->uc_mcontext.gregs[REG_RIP] += 2; /* over ud2 */
}

static void mending(void)
{
    struct sigaction action = {.sa_sigaction = mend, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    volatile char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    page[7] = 9;
    SHOW(page[7]);
    __asm__ volatile("ud2");
    SHOW(heard);
}

static void clobber(int number)
{
    double zero = number - number;
    __asm__ volatile("pxor %%xmm0, %%xmm0\n pxor %%xmm7, %%xmm7\n pxor %%xmm15, %%xmm15\n xor %%r12d, %%r12d" ::
                         : "xmm0", "xmm7", "xmm15", "r12");
    fesetround(FE_UPWARD);
    heard = (int)zero + number;
}

static void registers(void)
{
    set(SIGUSR1, clobber, 0);
    heard = 0;
    unsigned long result = 0, kept = 0x1234567890abcdef, r12 = 0;
    fesetround(FE_DOWNWARD);
    __asm__ volatile("movq %[kept], %%xmm7\n mov %[kept], %%r12\n mov %[kept], -64(%%rsp)\n"
                     "syscall\n movq %%xmm7, %[result]\n mov %%r12, %[r12]\n xor -64(%%rsp), %[kept]"
                     : [result] "=&r"(result), [kept] "+&r"(kept), [r12] "=&r"(r12)
                     : "a"(SYS_tkill), "D"(getpid()), "S"(SIGUSR1)
                     : "rcx", "r11", "xmm7", "r12", "memory");
    SHOW(heard);
    CHECK(result == 0x1234567890abcdef && r12 == result && kept == 0);
    CHECK(fegetround() == FE_DOWNWARD);
    fesetround(FE_TONEAREST);
}

static void ring_every(int usec)
{
    struct itimerval often = {.it_interval = {0, usec}, .it_value = {0, usec}};
    setitimer(ITIMER_REAL, &often, NULL);
}

/* SHOW a call that a signal interrupts. It rings again and again: one that comes before the call interrupts nothing. */
#define SHOW_RUNG(call)                          \
    do {                                         \
        ring_every(20000);                       \
        long result = (errno = 0, (long)(call)); \
        int error = errno;                       \
        ring_every(0);                           \
        errno = error;                           \
        show(#call, result);                     \
    } while (0)

/* Much longer than any machine takes for a few statements: what is left of it is most of it. */
enum { LONG = 1000, MOST_OF_IT = 900 };

static void interrupted(void)
{
    int ends[2];
    char byte;
    (void)ends;
    set(SIGALRM, note, 0);
    struct timespec asked = {LONG, 0}, left = {LONG, 0};
    SHOW_RUNG(nanosleep(&asked, &left));
    CHECK(left.tv_sec >= MOST_OF_IT && left.tv_sec < LONG);
    SHOW_RUNG(pause());
    struct pollfd input = {.fd = 0, .events = POLLIN};
    SHOW_RUNG(poll(&input, 1, LONG * 1000));
    SHOW_RUNG(read(0, &byte, 1));
    set(SIGALRM, note, SA_RESTART);
    SHOW_RUNG(poll(&input, 1, LONG * 1000));
    fd_set set_;
    FD_ZERO(&set_);
    FD_SET(0, &set_);
    struct timeval asked_ = {LONG, 0};
    SHOW_RUNG(select(1, &set_, NULL, NULL, &asked_));
    CHECK(asked_.tv_sec >= MOST_OF_IT && asked_.tv_sec < LONG);
    sigset_t block, none;
    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGALRM);
    sigprocmask(SIG_BLOCK, &block, NULL);
    heard = 0;
    SHOW_RUNG(ppoll(&input, 1, &asked, &none));
    SHOW(heard);
    sigprocmask(SIG_SETMASK, NULL, &none);
    CHECK(sigismember(&none, SIGALRM));
    sigprocmask(SIG_UNBLOCK, &block, NULL);
}

static void quietly(int number, siginfo_t *info, void *context)
{
    (void)context;
    note(number);
    last = *info;
}

static void a_moment(void)
{
    struct timespec moment = {0, 1000000};
    nanosleep(&moment, NULL);
}

static void timers(void)
{
    struct sigaction action = {.sa_sigaction = quietly, .sa_flags = SA_SIGINFO};
    sigaction(SIGALRM, &action, NULL); /* how often it comes before the timer is stopped depends on the machine */
    struct itimerval often = {.it_interval = {0, 2000}, .it_value = {0, 2000}}, got;
    count = 0;
    SHOW(setitimer(ITIMER_REAL, &often, NULL));
    while (count < 3)
        a_moment();
    CHECK(last.si_code == SI_KERNEL);
    SHOW(getitimer(ITIMER_REAL, &got));
    CHECK(got.it_interval.tv_usec == 2000 && got.it_value.tv_usec <= 2000);
    often.it_value.tv_usec = 0;
    SHOW(setitimer(ITIMER_REAL, &often, &got));
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    SHOW(alarm(LONG));
    double told = alarm(0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    double passed = after.tv_sec - before.tv_sec + (after.tv_nsec - before.tv_nsec) / 1e9;
    CHECK(told <= LONG && told >= LONG - passed - 0.5); /* it tells the nearest second */
    SHOW(setitimer(7, &often, NULL));
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 5};
    set_info(SIGRTMIN, 0, 0);
    SHOW(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec late = {.it_value = {LONG, 0}}, soon = {.it_value = {0, 30000000}}, left;
    SHOW(timer_settime(timer, 0, &late, NULL));
    SHOW(timer_gettime(timer, &left));
    CHECK(left.it_value.tv_sec >= MOST_OF_IT && left.it_value.tv_sec <= LONG);
    heard = 0;
    sigset_t until_told; /* the handler prints, too */
    sigemptyset(&until_told);
    sigaddset(&until_told, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &until_told, NULL);
    SHOW(timer_settime(timer, 0, &soon, &left));
    CHECK(left.it_value.tv_sec >= MOST_OF_IT);
    sigprocmask(SIG_UNBLOCK, &until_told, NULL);
    while (!heard)
        a_moment();
    CHECK(last.si_code == SI_TIMER && last.si_value.sival_int == 5);
    SHOW(timer_getoverrun(timer));
    SHOW(timer_delete(timer));
    SHOW(timer_settime(timer, 0, &soon, NULL));
    SHOW(timer_create(77, &event, &timer));
    SHOW(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer));
    heard = 0;
    SHOW(timer_settime(timer, 0, &soon, NULL));
    for (volatile long i = 0; !heard; i++)
        ;
    SHOW(heard == SIGRTMIN);
    SHOW(timer_delete(timer));
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    at_once();
    while_blocked();
    nesting();
    stacks();
    faults();
    mending();
    registers();
    interrupted();
    timers();
    return 0;
}

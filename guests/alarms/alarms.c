/* alarms: a timer rings every few milliseconds, and each ring is handled: on another stack, asleep for a while, with
 * signals that wait until they are let through. A guest saved inside the handler, or while one waits, loses none.
 *
 *     alarms [MS [ROUNDS]]      ROUNDS 0: for ever
 *
 * SIGTERM ends it, with a last line and status 3.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "args.h"

static volatile sig_atomic_t rings, told, over;
static char stack[1 << 16];

static void fail(const char *what)
{
    printf("%s\n", what);
    exit(1);
}

static void told_so(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    told += info->si_value.sival_int;
}

static void ring(int number)
{
    char here;
    (void)number;
    if (&here < stack || &here >= stack + sizeof stack)
        fail("the handler is on the wrong stack");
    int before = told;
    for (int i = 1; i <= 3; i++) /* they wait until the handler returns: it blocks them */
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i});
    struct timespec rest = {0, 1000000};
    nanosleep(&rest, NULL);
    if (told != before)
        fail("a blocked signal was delivered");
    rings++;
}

static void end(int number)
{
    (void)number;
    over = 1;
}

static void handle(int number, struct sigaction action, int also_blocked)
{
    sigemptyset(&action.sa_mask);
    if (also_blocked)
        sigaddset(&action.sa_mask, also_blocked);
    if (sigaction(number, &action, NULL) != 0)
        fail("sigaction");
}

int main(int argc, char **argv)
{
    long period = number_argument(argc, argv, 1, 10, 1, 1000) * 1000;
    long rounds = number_argument(argc, argv, 2, 5, 0, 1000000000);
    setvbuf(stdout, NULL, _IOLBF, 0);
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    if (sigaltstack(&alternate, NULL) != 0)
        fail("sigaltstack");
    handle(SIGALRM, (struct sigaction){.sa_handler = ring, .sa_flags = SA_ONSTACK}, SIGRTMIN);
    handle(SIGRTMIN, (struct sigaction){.sa_sigaction = told_so, .sa_flags = SA_SIGINFO}, SIGALRM);
    handle(SIGTERM, (struct sigaction){.sa_handler = end}, 0);
    sigset_t alarm_only, none;
    sigemptyset(&none);
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    sigaddset(&alarm_only, SIGTERM);
    sigprocmask(SIG_BLOCK, &alarm_only, NULL);
    struct itimerval timer = {{0, period}, {0, period}};
    setitimer(ITIMER_REAL, &timer, NULL);
    volatile double sum = 0;
    for (long round = 1; rounds == 0 || round <= rounds; round++) {
        while (rings < round && !over)
            sigsuspend(&none);
        if (over)
            break;
        for (int i = 1; i <= 1000; i++)
            sum += 1.0 / i;
        if (told != 6 * rings || rings != round)
            fail("a signal was lost");
        printf("ring %ld\n", round);
    }
    if (over) {
        printf("over\n");
        return 3;
    }
    return 0;
}

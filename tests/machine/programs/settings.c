/* Signals, limits, names and clocks: what is remembered, what is refused, and the layouts of the structures. */
#include "show.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <time.h>

static void handler(int number)
{
    (void)number;
}

static void actions(void)
{
    struct sigaction set = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_NODEFER}, got;
    sigemptyset(&set.sa_mask);
    sigaddset(&set.sa_mask, SIGUSR2);
    sigaddset(&set.sa_mask, SIGKILL);
    SHOW(sigaction(SIGUSR1, NULL, &got));
    CHECK(got.sa_handler == SIG_DFL);
    SHOW(sigaction(SIGUSR1, &set, &got));
    SHOW(sigaction(SIGUSR1, NULL, &got));
    enum { RESTORER = 0x04000000 }; /* the C library's business */
    CHECK(got.sa_handler == handler && (got.sa_flags & ~RESTORER) == (SA_RESTART | SA_NODEFER));
    CHECK(sigismember(&got.sa_mask, SIGUSR2) && !sigismember(&got.sa_mask, SIGUSR1));
    CHECK(!sigismember(&got.sa_mask, SIGKILL));
    SHOW(sigaction(SIGKILL, &set, NULL));
    SHOW(sigaction(SIGKILL, NULL, &got));
    SHOW(sigaction(65, NULL, &got));
    SHOW(sigaction(0, NULL, &got));
    SHOW(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4));
    SHOW(signal(SIGINT, SIG_IGN) == SIG_DFL);
    SHOW(raise(SIGINT));
    SHOW(raise(SIGCHLD));
    SHOW(raise(0));
    SHOW(raise(99));
    SHOW(kill(getpid(), 0));
    SHOW(kill(99999999, 0));
}

static void masks(void)
{
    sigset_t set, got;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGKILL);
    SHOW(sigprocmask(SIG_BLOCK, &set, &got));
    CHECK(!sigismember(&got, SIGTERM));
    SHOW(sigprocmask(SIG_SETMASK, NULL, &got));
    CHECK(sigismember(&got, SIGTERM) && !sigismember(&got, SIGKILL));
    SHOW(sigprocmask(SIG_UNBLOCK, &set, NULL));
    SHOW(sigprocmask(77, NULL, &got));
    CHECK(!sigismember(&got, SIGTERM));
    SHOW(sigprocmask(77, &set, NULL));
    SHOW(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, 16));
}

static void alternate_stack(void)
{
    static char memory[1 << 16];
    stack_t set = {.ss_sp = memory, .ss_size = sizeof memory}, got;
    SHOW(sigaltstack(NULL, &got));
    CHECK(got.ss_flags == SS_DISABLE);
    SHOW(sigaltstack(&set, NULL));
    SHOW(sigaltstack(NULL, &got));
    CHECK(got.ss_sp == memory && got.ss_size == sizeof memory && got.ss_flags == 0);
    set.ss_size = 100;
    SHOW(sigaltstack(&set, NULL));
    set.ss_flags = 77;
    SHOW(sigaltstack(&set, NULL));
    set.ss_flags = SS_DISABLE;
    SHOW(sigaltstack(&set, &got));
    CHECK(got.ss_sp == memory);
    SHOW(sigaltstack(NULL, &got));
    CHECK(got.ss_flags == SS_DISABLE && got.ss_sp == NULL && got.ss_size == 0);
}

static void limits(void)
{
    struct rlimit limit;
    SHOW(getrlimit(RLIMIT_STACK, &limit));
    CHECK(limit.rlim_cur >= 1 << 17 && limit.rlim_cur <= limit.rlim_max);
    SHOW(setrlimit(RLIMIT_STACK, &limit));
    SHOW(getrlimit(99, &limit));
    limit.rlim_cur = 100, limit.rlim_max = 10;
    SHOW(setrlimit(RLIMIT_NOFILE, &limit));
    SHOW(prlimit(0, RLIMIT_NOFILE, NULL, &limit));
    CHECK(limit.rlim_cur >= 256);
    SHOW(prlimit(99999999, RLIMIT_NOFILE, NULL, &limit));
    struct rusage usage;
    memset(&usage, 0xff, sizeof usage);
    SHOW(getrusage(RUSAGE_SELF, &usage));
    CHECK(usage.ru_utime.tv_sec == 0 && usage.ru_utime.tv_usec >= 0 && usage.ru_stime.tv_sec == 0);
    CHECK(usage.ru_maxrss > 50 && usage.ru_maxrss < 100000000 && usage.ru_nswap == 0 && usage.ru_nsignals == 0);
    SHOW(getrusage(RUSAGE_CHILDREN, &usage));
    CHECK(usage.ru_utime.tv_usec == 0);
    SHOW(getrusage(5, &usage));
    struct sysinfo info;
    memset(&info, 0xff, sizeof info);
    SHOW(sysinfo(&info));
    CHECK(info.uptime > 0 && info.uptime < 1L << 40 && info.procs > 0);
    CHECK(info.mem_unit == 1 && info.totalram > 1 << 20 && info.freeram > 0 && info.freeram < info.totalram);
    CHECK(info.totalhigh == 0 && info.freehigh == 0);
}

static void names(void)
{
    struct utsname name;
    SHOW(uname(&name));
    CHECK(!strcmp(name.sysname, "Linux") && !strcmp(name.machine, "x86_64") && strlen(name.release) > 2);
    char text[17] = "";
    SHOW(prctl(PR_SET_NAME, "a name that is too long"));
    SHOW(prctl(PR_GET_NAME, text));
    printf("%s\n", text);
    SHOW(prctl(12345));
    SHOW(getpid() == (pid_t)syscall(SYS_gettid));
    SHOW(getpgid(99999999));
    SHOW(umask(027));
    SHOW(umask(07777));
    SHOW(umask(0));
    uid_t a, b, c;
    SHOW(getresuid(&a, &b, &c));
    CHECK(a == getuid() && b == geteuid());
    SHOW(setuid(getuid()));
    SHOW(getgroups(-1, NULL));
    char directory[2];
    SHOW(syscall(SYS_getcwd, directory, 1));
    cpu_set_t cpus;
    SHOW(sched_getaffinity(0, sizeof cpus, &cpus));
    CHECK(CPU_COUNT(&cpus) >= 1);
    SHOW(syscall(SYS_sched_getaffinity, 0, 7, &cpus));
    SHOW(syscall(SYS_sched_getaffinity, 99999999, 8, &cpus));
    unsigned cpu = 77, node = 77;
    SHOW(syscall(SYS_getcpu, &cpu, &node, NULL));
    CHECK(cpu < 77 && node < 77);
    SHOW(sched_yield());
}

static void clocks(void)
{
    static const clockid_t ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID,
                                    CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE,
                                    CLOCK_BOOTTIME, CLOCK_TAI};
    struct timespec first, second, resolution;
    for (unsigned i = 0; i < sizeof ids / sizeof *ids; i++) {
        printf("clock %d\n", ids[i]);
        SHOW(syscall(SYS_clock_gettime, ids[i], &first));
        SHOW(syscall(SYS_clock_gettime, ids[i], &second));
        CHECK(second.tv_sec > first.tv_sec || (second.tv_sec == first.tv_sec && second.tv_nsec >= first.tv_nsec));
        CHECK(second.tv_nsec >= 0 && second.tv_nsec < 1000000000);
        SHOW(syscall(SYS_clock_getres, ids[i], &resolution));
        CHECK(resolution.tv_sec == 0 && resolution.tv_nsec > 0 && resolution.tv_nsec <= 10000000);
    }
    SHOW(syscall(SYS_clock_gettime, 77, &first));
    SHOW(syscall(SYS_clock_getres, 77, NULL));
    SHOW(syscall(SYS_clock_getres, CLOCK_MONOTONIC, NULL));
    struct tms ticks;
    CHECK(times(&ticks) > 0 && ticks.tms_utime >= 0 && ticks.tms_utime < 100 && ticks.tms_cutime == 0);
    time_t now;
    CHECK(syscall(SYS_time, &now) == now && now > 1600000000);
}

static void randomness(void)
{
    unsigned char bytes[64] = {0}, again[64] = {0};
    SHOW(getrandom(bytes, sizeof bytes, 0));
    SHOW(getrandom(again, sizeof again, GRND_NONBLOCK));
    CHECK(memcmp(bytes, again, sizeof bytes) != 0);
    SHOW(getrandom(bytes, 0, 0));
    SHOW(getrandom(bytes, 1, 0x80));
    SHOW(getrandom(bytes, 1, GRND_RANDOM | 4));
}

int main(void)
{
    actions();
    masks();
    alternate_stack();
    limits();
    names();
    clocks();
    randomness();
    return 0;
}

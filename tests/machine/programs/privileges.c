/* What an ordinary user may not do, and what changes nothing: as root, it becomes an ordinary user first. */
#include "show.h"
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    if (!geteuid() && (setgroups(0, NULL) || setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000))) return 2;
    uid_t user = getuid();
    gid_t group = getgid();
    struct timespec time = {1, 0};
    struct timeval day = {1, 0};

    SHOW(setresuid(-1, user, -1));
    SHOW(setresuid(user, user, user));
    SHOW(setresuid(0, user, user));
    SHOW(setresgid(group, -1, group));
    SHOW(setresgid(-1, -1, 0));
    SHOW(setreuid(user, user));
    SHOW(setreuid(user, 0));
    SHOW(setregid(-1, group));
    SHOW(setregid(0, -1));
    SHOW(setgroups(0, NULL));

    SHOW(clock_settime(CLOCK_REALTIME, &time));
    SHOW(clock_settime(CLOCK_MONOTONIC, &time));
    SHOW(clock_settime(77, &time));
    SHOW(settimeofday(&day, NULL));
    SHOW(sethostname("other", 5));
    SHOW(setdomainname("other", 5));
    SHOW(chroot("/"));
    SHOW(mount("none", "/", "tmpfs", 0, NULL));
    SHOW(umount2("/", 0));

    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{1, 2, 3}, {4, 5, 6}};
    SHOW(syscall(SYS_capset, &header, sets));
    SHOW(syscall(SYS_capget, &header, sets));
    CHECK(!sets[0].effective && !sets[0].permitted && !sets[0].inheritable && !sets[1].effective && !sets[1].permitted);
    SHOW(syscall(SYS_capset, &header, sets));
    header.pid = 99999999;
    SHOW(syscall(SYS_capget, &header, sets));
    header = (struct __user_cap_header_struct){77, 0};
    SHOW(syscall(SYS_capget, &header, sets));
    CHECK(header.version == _LINUX_CAPABILITY_VERSION_3);
    header.version = 77;
    SHOW(syscall(SYS_capget, &header, NULL));
    SHOW(syscall(SYS_capget, &header, NULL));

    int nice = getpriority(PRIO_PROCESS, 0); /* what whoever runs the tests has */
    SHOW(getpriority(PRIO_PROCESS, getpid()) - nice);
    SHOW(getpriority(PRIO_PROCESS, 99999999));
    SHOW(getpriority(7, 0));
    SHOW(setpriority(PRIO_PROCESS, 0, nice));
    SHOW(setpriority(PRIO_PROCESS, 99999999, 0));
    SHOW(setpriority(7, 0, 0));

    SHOW(sched_rr_get_interval(0, &time));
    CHECK(time.tv_sec == 0 && time.tv_nsec >= 0);
    SHOW(sched_rr_get_interval(-1, &time));
    SHOW(sched_rr_get_interval(99999999, &time));
    cpu_set_t set;
    SHOW(sched_getaffinity(-1, sizeof set, &set));
    SHOW(sched_setaffinity(-1, sizeof set, &set));

    clockid_t clock;
    SHOW(clock_getcpuclockid(getpid(), &clock));
    SHOW(clock_gettime(clock, &time));
    clock = (~gettid() << 3) | 6; /* the CPU clock of a thread, as pthread_getcpuclockid makes it */
    SHOW(clock_gettime(clock, &time));
    SHOW(clock_getres(clock, &time));
    SHOW(clock_gettime((~99999999 << 3) | 6, &time));
    return 0;
}

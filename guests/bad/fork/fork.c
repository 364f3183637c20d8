/* fork: tries to make a second process, by each of the four calls that can. */
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "errno_name.h"

#ifndef SYS_clone3
#define SYS_clone3 435
#endif

enum { CHILD_STATUS = 7 };

/* The child ends at once; the parent waits for it. */
static void report(const char *what, long child)
{
    if (child == 0)
        _exit(CHILD_STATUS);
    int status;
    if (child < 0)
        printf("%s: refused: %s\n", what, errno_name(errno));
    else if (waitpid((pid_t)child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == CHILD_STATUS)
        printf("%s: a child ran\n", what);
    else
        printf("%s: a child was lost\n", what);
    fflush(stdout);
}

/* A raw vfork(2): the child may not return from here, so it ends in here, without a word of memory. */
static long raw_vfork(void)
{
    long child;
    __asm__ volatile("syscall; test %%rax, %%rax; jnz 1f; mov %2, %%edi; mov %3, %%eax; syscall; 1:"
                     : "=a"(child)
                     : "a"(SYS_vfork), "i"(CHILD_STATUS), "i"(SYS_exit_group)
                     : "rcx", "r11", "rdi", "memory", "cc");
    if (child >= 0)
        return child;
    errno = (int)-child;
    return -1;
}

int main(void)
{
    /* struct clone_args, version 0; its fifth member is the signal at the child's end. */
    uint64_t arguments[8] = {0, 0, 0, 0, SIGCHLD, 0, 0, 0};
    report("fork", syscall(SYS_fork));
    report("vfork", raw_vfork());
    report("clone", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    report("clone3", syscall(SYS_clone3, arguments, sizeof arguments));
    return 0;
}

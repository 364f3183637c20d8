/* Descriptors, vectors, positions and flags. Standard input is a regular file with "0123456789". */
#include "show.h"
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

static void copying(void)
{
    SHOW(dup(0));
    SHOW(dup(77));
    SHOW(dup2(0, 9));
    SHOW(dup2(9, 9));
    SHOW(dup2(77, 77));
    SHOW(dup2(77, 8));
    SHOW(dup2(0, -1));
    SHOW(dup2(0, 1 << 20));
    SHOW(dup3(0, 9, O_CLOEXEC));
    SHOW(fcntl(9, F_GETFD));
    SHOW(dup3(0, 0, 0));
    SHOW(dup3(0, 9, O_NONBLOCK));
    SHOW(fcntl(0, F_DUPFD, 20));
    SHOW(fcntl(0, F_DUPFD_CLOEXEC, 20));
    SHOW(fcntl(21, F_GETFD));
    SHOW(fcntl(21, F_SETFD, 0));
    SHOW(fcntl(21, F_GETFD));
    SHOW(fcntl(0, F_DUPFD, -1));
    SHOW(fcntl(77, F_GETFD));
    SHOW(fcntl(0, 12345));
    SHOW(close(21));
    SHOW(close(21));
    SHOW(close(-1));
    SHOW(ioctl(9, FIOCLEX));
    SHOW(fcntl(9, F_GETFD));
    SHOW(ioctl(9, FIONCLEX));
    SHOW(fcntl(9, F_GETFD));
}

static void reading(void)
{
    char a[4] = "", b[4] = "", c[64] = "";
    struct iovec vector[3] = {{a, 2}, {NULL, 0}, {b, 3}};
    SHOW(readv(0, vector, 3));
    printf("%.2s %.3s\n", a, b);
    SHOW(lseek(0, 0, SEEK_CUR));
    SHOW(lseek(9, -2, SEEK_END));
    SHOW(read(3, c, sizeof c));
    printf("%s\n", c);
    SHOW(read(0, c, sizeof c));
    SHOW(lseek(0, -1, SEEK_SET));
    SHOW(lseek(0, 0, 77));
    SHOW(pread(0, c, 3, 4));
    printf("%.3s\n", c);
    SHOW(pread(0, c, 3, 100));
    SHOW(pread(0, c, 3, -1));
    SHOW(lseek(0, 1, SEEK_SET));
    SHOW(read(0, c, 0));
    SHOW(read(77, c, 1));
    SHOW(read(0, NULL, 0));
    SHOW(read(1, c, 1));
    SHOW(readv(0, vector, -1));
    SHOW(readv(0, vector, IOV_MAX + 1));
    SHOW(readv(0, vector, 0));
    vector[0].iov_len = -1;
    SHOW(readv(0, vector, 1));
    SHOW(ioctl(0, FIONREAD, c) == 0 ? *(int *)c : -1);
    SHOW(fcntl(0, F_GETFL) & O_ACCMODE);
    SHOW(fcntl(0, F_SETFL, O_NONBLOCK));
    SHOW(fcntl(0, F_GETFL) & O_NONBLOCK);
    SHOW(fcntl(9, F_SETFL, 0));
    SHOW(fcntl(0, F_GETFL) & O_NONBLOCK);
    int on = 1;
    SHOW(ioctl(0, FIONBIO, &on));
    SHOW(fcntl(0, F_GETFL) & O_NONBLOCK);
}

static void writing(void)
{
    struct iovec vector[4] = {{"ab", 2}, {NULL, 0}, {"cde", 3}, {"\n", 1}};
    SHOW(writev(1, vector, 4));
    SHOW(write(1, "", 0));
    SHOW(write(77, "x", 1));
    SHOW(write(0, "x", 1));
    SHOW(lseek(1, 0, SEEK_CUR));
    SHOW(pwrite(1, "x", 1, 0));
    SHOW(pread(1, vector, 1, 0));
    SHOW(fsync(1));
    SHOW(posix_fadvise(0, 0, 0, POSIX_FADV_SEQUENTIAL));
    SHOW(posix_fadvise(1, 0, 0, POSIX_FADV_SEQUENTIAL));
    SHOW(ioctl(0, TIOCGWINSZ, vector));
    SHOW(ioctl(1, 0x12345, vector));
    SHOW(ioctl(77, FIONREAD, vector));
    SHOW(isatty(0));
}

static void looking(void)
{
    struct stat a, b;
    SHOW(fstat(0, &a));
    SHOW(fstatat(0, "", &b, AT_EMPTY_PATH));
    CHECK(a.st_ino == b.st_ino && a.st_dev == b.st_dev);
    printf("%lu %lu %lu %o %lu\n", a.st_dev, a.st_ino, a.st_nlink, a.st_mode, a.st_rdev);
    printf("mine: %d %d\n", a.st_uid == getuid(), a.st_gid == getgid());
    printf("%ld %ld %ld %ld.%09ld %ld.%09ld\n", a.st_size, a.st_blksize, a.st_blocks, a.st_mtim.tv_sec,
           a.st_mtim.tv_nsec, a.st_ctim.tv_sec, a.st_ctim.tv_nsec);
    SHOW(fstat(77, &a));
    SHOW(syscall(SYS_stat, "/no/such/file", &a));
    SHOW(access("/no/such/file", R_OK));
    SHOW(open("/no/such/file", O_RDONLY));
    SHOW(openat(AT_FDCWD, "/no/such/file", O_RDONLY));
    SHOW(readlink("/no/such/file", (char *)&a, 10));
    SHOW(readlink("/proc/self/exe", (char *)&a, 0));
    struct pollfd nothing = {77, POLLIN, 0};
    SHOW(poll(&nothing, 1, 0));
    SHOW(nothing.revents == POLLNVAL);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    copying();
    reading();
    writing();
    looking();
    return 0;
}

/* Calls about files, directories and names, in the directory that it is started in: what Linux answers, a guest gets. */
#include "show.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>

static char text[4096];

static void contents(const char *path)
{
    int fd = open(path, O_RDONLY);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    printf("%s has %.*s\n", path, size < 0 ? 1 : (int)size, size < 0 ? "?" : text);
    close(fd);
}

static int order(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *path)
{
    DIR *folder = opendir(path);
    char *names[100];
    int count = 0;
    for (struct dirent *entry; folder && (entry = readdir(folder)) && count < 100;)
        asprintf(&names[count++], "%s (%d)", entry->d_name, entry->d_type);
    qsort(names, count, sizeof *names, order);
    printf("%s:", path);
    for (int i = 0; i < count; i++)
        printf(" %s", names[i]);
    puts("");
    if (folder)
        closedir(folder);
}

static void facts(const char *path)
{
    struct stat s;
    if (lstat(path, &s))
        printf("%s: %s\n", path, strerrorname_np(errno));
    else
        printf("%s: mode %o, %ld names, %ld bytes\n", path, s.st_mode, S_ISDIR(s.st_mode) ? 0 : (long)s.st_nlink,
               S_ISDIR(s.st_mode) ? 0 : (long)s.st_size);
}

int main(void)
{
    umask(022);
    SHOW(open("none", O_RDONLY));
    SHOW(open("", O_RDONLY));
    SHOW(open("none/none", O_WRONLY | O_CREAT, 0600));
    int fd = open("file", O_RDWR | O_CREAT | O_EXCL, 0666);
    SHOW(open("file", O_RDWR | O_CREAT | O_EXCL, 0666));
    SHOW(write(fd, "0123456789", 10));
    SHOW(pwrite(fd, "AB", 2, 4));
    SHOW(lseek(fd, -3, SEEK_END));
    SHOW(read(fd, text, 10));
    SHOW(read(fd, text, 10));
    SHOW(lseek(fd, -1, SEEK_SET));
    SHOW(lseek(fd, 20, SEEK_SET));
    SHOW(write(fd, "end", 3));
    SHOW(ftruncate(fd, 22));
    SHOW(ftruncate(fd, -1));
    SHOW(flock(fd, LOCK_EX | LOCK_NB));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    SHOW(fcntl(fd, F_SETLK, &lock));
    SHOW(fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND));
    struct iovec parts[2] = {{"one", 3}, {"two", 3}};
    SHOW(pwritev(fd, parts, 2, 1));
    facts("file");
    contents("file");
    int append = open("file", O_WRONLY | O_APPEND);
    SHOW(write(append, "appended", 8));
    SHOW(read(append, text, 1));
    SHOW(lseek(append, 0, SEEK_CUR));
    int again = open("file", O_RDONLY);
    SHOW(write(again, "x", 1));
    SHOW(ftruncate(again, 0));
    SHOW(truncate("file", 5));
    contents("file");
    SHOW(open("file", O_WRONLY | O_TRUNC) > 0);
    facts("file");
    SHOW(open("file/", O_RDONLY));
    SHOW(open("file/x", O_RDONLY));
    SHOW(open("file", O_RDONLY | O_DIRECTORY));

    SHOW(mkdir("folder", 0777));
    SHOW(mkdir("folder", 0777));
    SHOW(mkdir("folder/", 0777));
    SHOW(mkdir("none/folder", 0777));
    facts("folder");
    SHOW(open("folder", O_RDWR));
    SHOW(open("folder", O_RDONLY | O_CREAT, 0600));
    SHOW(rmdir("file"));
    SHOW(unlink("folder"));
    int folder = open("folder", O_RDONLY | O_DIRECTORY);
    SHOW(read(folder, text, 1));
    int inner = openat(folder, "inner", O_WRONLY | O_CREAT, 0640);
    SHOW(write(inner, "inside", 6));
    contents("folder/inner");
    contents("folder/../folder/./inner");
    SHOW(openat(fd, "inner", O_RDONLY));
    SHOW(openat(99, "inner", O_RDONLY));
    SHOW(rmdir("folder"));
    SHOW(symlink("inner", "folder/link"));
    SHOW(symlink("inner", "folder/link"));
    SHOW(symlink("loop", "loop"));
    SHOW(symlink("none", "dangling"));
    SHOW(symlink("folder", "linked"));
    SHOW(open("loop", O_RDONLY));
    SHOW(open("dangling", O_RDONLY));
    SHOW(open("dangling", O_RDONLY | O_CREAT | O_EXCL, 0600));
    SHOW(open("folder/link", O_RDONLY | O_NOFOLLOW));
    contents("folder/link");
    contents("linked/link");
    contents("linked/../folder/link");
    SHOW(readlink("folder/link", text, 3));
    SHOW(readlink("file", text, 3));
    SHOW(open("dangling", O_WRONLY | O_CREAT, 0600) > 0);
    facts("none");
    list("folder");
    list("linked");

    SHOW(link("folder/inner", "second"));
    SHOW(link("folder", "third"));
    facts("second");
    SHOW(rename("second", "folder/inner"));
    facts("second");
    SHOW(rename("second", "moved"));
    SHOW(rename("none-at-all", "moved"));
    SHOW(rename("folder", "folder/below"));
    SHOW(rename("folder", "file"));
    SHOW(rename("file", "folder"));
    SHOW(mkdir("empty", 0700));
    SHOW(rename("folder", "empty"));
    list("empty");
    SHOW(renameat2(AT_FDCWD, "moved", AT_FDCWD, "none", RENAME_NOREPLACE));
    SHOW(openat(folder, "inner", O_RDONLY) > 0);
    SHOW(fchdir(folder));
    contents("inner");
    SHOW(chdir(".."));
    SHOW(chdir("file"));
    SHOW(chmod("file", 0444));
    SHOW(access("file", R_OK));
    SHOW(access("none-at-all", F_OK));
    facts("file");
    SHOW(chmod("file", 0600));
    struct timespec times[2] = {{1, 2}, {3, 4}};
    SHOW(utimensat(AT_FDCWD, "file", times, 0));
    struct stat s;
    SHOW(stat("file", &s));
    printf("%ld.%ld\n", s.st_mtim.tv_sec, s.st_mtim.tv_nsec);

    int gone = open("gone", O_RDWR | O_CREAT, 0600);
    SHOW(write(gone, "still there", 11));
    SHOW(unlink("gone"));
    SHOW(pread(gone, text, 20, 6));
    SHOW(fstat(gone, &s));
    printf("%ld names\n", (long)s.st_nlink);
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, gone, 1));
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, gone, 0);
    printf("%.11s\n", map);
    map[0] = 'S';
    SHOW(pread(gone, text, 1, 0));
    printf("%c\n", text[0]);
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, append, 0) == MAP_FAILED);

    int ends[2];
    SHOW(pipe2(ends, O_NONBLOCK));
    SHOW(read(ends[0], text, 1));
    SHOW(write(ends[1], "through", 7));
    SHOW(read(ends[0], text, 100));
    SHOW(write(ends[0], "x", 1));
    SHOW(lseek(ends[0], 0, SEEK_CUR));
    close(ends[1]);
    SHOW(read(ends[0], text, 1));
    int null = open("/dev/null", O_RDWR);
    SHOW(write(null, "x", 1));
    SHOW(read(null, text, 1));
    SHOW(read(open("/dev/zero", O_RDONLY), text, 5));
    SHOW(write(open("/dev/full", O_WRONLY), text, 5));
    SHOW(chown("file", -1, -1));
    SHOW(unlink("file"));
    SHOW(unlink("file"));
    list(".");
    return 0;
}

/* Holds everything open that can be open, says so, waits for a line, and prints what it can still do with each.
 *
 *     held FOLDER [TMP]      with some of it in TMP, /tmp if it is not given
 */
#include "show.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

static char text[4096];

static void rest(const char *what, int fd)
{
    ssize_t size = read(fd, text, sizeof text - 1);
    if (size < 0)
        printf("%s: %s\n", what, strerrorname_np(errno));
    else
        printf("%s: %.*s\n", what, (int)size, text);
}

static int begun(const char *path, int flags, int skip)
{
    int fd = open(path, flags, 0600);
    if (fd < 0)
        printf("%s: %s\n", path, strerrorname_np(errno));
    if (flags & O_CREAT && write(fd, "made by the guest", 17) != 17)
        puts("cannot write");
    lseek(fd, skip, SEEK_SET);
    return fd;
}

int main(int argc, char **argv)
{
    char nameless_path[4096], many[4096];
    snprintf(nameless_path, sizeof nameless_path, "%s/nameless", argc > 2 ? argv[2] : "/tmp");
    snprintf(many, sizeof many, "%s/many", argc > 2 ? argv[2] : "/tmp");
    umask(027);
    chdir(argv[1]);
    int host = begun("file", O_RDONLY, 2), second = dup(host), made = begun("made", O_RDWR | O_CREAT, 5);
    int nameless = begun(nameless_path, O_RDWR | O_CREAT, 8), null = open("/dev/null", O_RDWR), ends[2], full[2];
    unlink(nameless_path);
    int append = open("made", O_WRONLY | O_APPEND);
    int proc = begun("/proc/self/comm", O_RDONLY, 1);
    pipe(ends);
    write(ends[1], "in the pipe", 11);
    pipe2(full, O_NONBLOCK);
    int lot = 0;
    while (write(full[1], text, sizeof text) > 0)
        lot++;
    close(full[1]);
    fcntl(made, F_SETFD, FD_CLOEXEC);
    mkdir(many, 0777);
    for (int i = 0; i < 40; i++) {
        snprintf(text, sizeof text, "%s/%02d", many, i);
        close(open(text, O_CREAT | O_WRONLY, 0666));
    }
    DIR *folder = opendir(many);
    int seen = 0;
    for (; seen < 10; seen++)
        readdir(folder);
    symlink("made", "link");
    puts("holding");
    fflush(stdout);
    if (!fgets(text, sizeof text, stdin))
        return 1;
    rest("host", host);
    SHOW(lseek(second, 0, SEEK_CUR));
    rest("made", made);
    SHOW(write(append, "!", 1));
    rest("made", made);
    rest("nameless", nameless);
    rest("proc", proc);
    rest("null", null);
    SHOW(write(ends[1], ", and more", 10));
    rest("pipe", ends[0]);
    long left = 0, step;
    while ((step = read(full[0], text, sizeof text)) > 0)
        left += step;
    printf("%s\n", left == lot * 4096L ? "all that was in the other pipe" : "not all");
    SHOW(fcntl(made, F_GETFD));
    SHOW(fcntl(append, F_GETFL) & (O_ACCMODE | O_APPEND));
    while (readdir(folder))
        seen++;
    SHOW(seen);
    SHOW(umask(0));
    printf("%s\n", strrchr(getcwd(text, sizeof text), '/'));
    SHOW(readlink("link", text, 10));
    struct stat s;
    SHOW(stat("made", &s));
    printf("%o %ld\n", s.st_mode, (long)s.st_size);
    return 0;
}

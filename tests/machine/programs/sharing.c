/* Shared mappings of files: what read, write and mappings see of each other, and how long.

Given a number, it stops after so many steps and waits for a line: to be saved there. */
#define _GNU_SOURCE
#include "show.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096 };
#define RW (PROT_READ | PROT_WRITE)

static int until = -1;

static void step(void)
{
    char line[16];
    if (until-- == 0) {
        printf("waiting\n");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin))
            exit(3);
    }
}

static int holds(int fd, long offset, const char *text)
{
    char got[64] = "";
    return pread(fd, got, strlen(text), offset) == (ssize_t)strlen(text) && !strcmp(got, text);
}

static int fresh(const char *name, long size)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ftruncate(fd, size))
        exit(4);
    return fd;
}

static void agreeing(void)
{
    int fd = fresh("agreeing", 3 * PAGE - 100), other = open("agreeing", O_RDWR);
    char *map = mmap(NULL, 3 * PAGE, RW, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    strcpy(map + 10, "stored");
    CHECK(holds(fd, 10, "stored"));
    step();
    CHECK(holds(other, 10, "stored"));
    CHECK(pwrite(other, "written", 7, PAGE - 3) == 7);
    CHECK(!memcmp(map + PAGE - 3, "written", 7));
    step();
    CHECK(!memcmp(map + PAGE - 3, "written", 7));
    strcpy(map + 2 * PAGE, "third");
    step();
    CHECK(lseek(fd, 2 * PAGE, SEEK_SET) == 2 * PAGE);
    char got[6] = "";
    CHECK(read(fd, got, 5) == 5 && !strcmp(got, "third"));
    CHECK(write(fd, "!", 1) == 1 && map[2 * PAGE + 5] == '!');
    close(fd);
    close(other);
    step();
    strcpy(map + 100, "after close");
    SHOW(msync(map, PAGE, MS_SYNC));
    SHOW(msync(map, PAGE, MS_SYNC | MS_ASYNC));
    SHOW(munmap(map, 3 * PAGE));
    step();
    fd = open("agreeing", O_RDONLY);
    CHECK(holds(fd, 100, "after close") && holds(fd, 10, "stored") && holds(fd, 2 * PAGE, "third!"));
    CHECK(mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0) == MAP_FAILED);
    map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED && !strcmp(map + 100, "after close"));
    SHOW(mprotect(map, PAGE, RW));
    other = open("agreeing", O_WRONLY | O_APPEND);
    CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, other, 0) == MAP_FAILED);
    close(other);
    other = open("agreeing", O_WRONLY);
    CHECK(pwrite(other, "AFTER", 5, 100) == 5 && !strcmp(map + 100, "AFTER close"));
    SHOW(munmap(map, PAGE));
    close(fd);
    close(other);
}

static void growing(void)
{
    int fd = fresh("growing", 100);
    char *map = mmap(NULL, 2 * PAGE, RW, MAP_SHARED, fd, 0);
    strcpy(map, "first");
    CHECK(ftruncate(fd, 2 * PAGE) == 0);
    step();
    strcpy(map + PAGE + 5, "second");
    CHECK(holds(fd, PAGE + 5, "second") && holds(fd, 0, "first"));
    CHECK(ftruncate(fd, PAGE) == 0 && ftruncate(fd, 2 * PAGE) == 0);
    step();
    CHECK(map[PAGE + 5] == 0 && !strcmp(map, "first"));
    SHOW(mmap(map, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == map);
    CHECK(map[0] == 0 && holds(fd, 0, "first"));
    strcpy(map + PAGE, "tail");
    char *larger = mremap(map + PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
    CHECK(ftruncate(fd, 4 * PAGE) == 0);
    step();
    strcpy(larger + PAGE, "grown");
    CHECK(!strcmp(larger, "tail") && holds(fd, 2 * PAGE, "grown"));
    SHOW(madvise(larger, 2 * PAGE, MADV_DONTNEED));
    CHECK(!strcmp(larger, "tail") && !strcmp(larger + PAGE, "grown"));
    SHOW(munmap(larger + PAGE, PAGE));
    CHECK(holds(fd, 2 * PAGE, "grown") && !strcmp(larger, "tail"));
    int emptied = open("growing", O_RDWR | O_TRUNC);
    CHECK(ftruncate(emptied, 4 * PAGE) == 0 && larger[0] == 0);
    SHOW(munmap(larger, PAGE));
    close(fd);
    close(emptied);
}

static void twice(void)
{
    int fd = fresh("twice", 4 * PAGE), other = open("twice", O_RDWR);
    char *first = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    char *second = mmap(NULL, 2 * PAGE, RW, MAP_SHARED, other, PAGE);
    strcpy(second, "seen");
    step();
    CHECK(!strcmp(first + PAGE, "seen"));
    char *private = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, PAGE);
    CHECK(!strcmp(private, "seen"));
    strcpy(private, "mine");
    CHECK(!strcmp(second, "seen") && holds(fd, PAGE, "seen"));
    SHOW(munmap(second, 2 * PAGE));
    CHECK(!strcmp(first + PAGE, "seen"));
    step();
    CHECK(pwrite(fd, "again", 5, PAGE) == 5 && !strcmp(first + PAGE, "again"));
    SHOW(mprotect(first, 4 * PAGE, RW));
    strcpy(first + 3 * PAGE, "once more");
    SHOW(mprotect(first, 4 * PAGE, PROT_READ));
    step();
    CHECK(holds(other, 3 * PAGE, "once more"));
    SHOW(munmap(first, 4 * PAGE));
    close(fd);
    close(other);
}

static void replaced(void)
{
    int fd = fresh("replaced", 2 * PAGE);
    CHECK(pwrite(fd, "shared", 6, 0) == 6);
    char *map = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(mmap(map, 2 * PAGE, RW, MAP_PRIVATE | MAP_FIXED, fd, 0) == map);
    strcpy(map, "private");
    step();
    CHECK(holds(fd, 0, "shared") && !strcmp(map, "private"));
    CHECK(mmap(map, 2 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == map && !strcmp(map, "shared"));
    strcpy(map + PAGE, "shared again");
    CHECK(mmap(map + PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == map + PAGE);
    CHECK(holds(fd, PAGE, "shared again"));
    SHOW(munmap(map, 2 * PAGE));
    close(fd);
}

static volatile int *told;

static void *teller(void *unused)
{
    (void)unused;
    told[1] = 17;
    return NULL;
}

static void among_threads(void)
{
    pthread_t thread;
    told = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_create(&thread, NULL, teller, NULL);
    pthread_join(thread, NULL);
    CHECK(told[1] == 17);
    step();
    CHECK(told[1] == 17);
}

static void unlinked(void)
{
    int fd = fresh("unlinked", PAGE);
    char *map = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);
    unlink("unlinked");
    strcpy(map, "nameless");
    CHECK(holds(fd, 0, "nameless"));
    SHOW(munmap(map, PAGE));
    CHECK(holds(fd, 0, "nameless"));
    close(fd);
}

static void left_mapped(void)
{
    int fd = fresh("left", 2 * PAGE + 10);
    char *map = mmap(NULL, 3 * PAGE, RW, MAP_SHARED, fd, 0);
    close(fd);
    strcpy(map + 2 * PAGE, "at exit!");
    step();
    map[0] = 'x';
}

int main(int argc, char **argv)
{
    if (argc > 1)
        until = atoi(argv[1]);
    agreeing();
    growing();
    twice();
    replaced();
    among_threads();
    unlinked();
    left_mapped();
    return 0;
}

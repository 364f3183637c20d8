/* A guest that touches pages on command, for tests of the fault engines.
 *
 * It allocates PAGES pages at AREA and says so with an answer. Then it reads commands from standard input and answers
 * each on standard output. Its reads and writes of the area are plain loads and stores, so each meets the page
 * as the engine left it.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE_SIZE = 4096, WORDS = PAGE_SIZE / sizeof(uint64_t), PAGES = 2048 };
#define AREA ((char *)0x2000000)

struct command {
    uint64_t what, page, count, value;
};

struct answer {
    uint64_t first; /* the page's first word */
    uint64_t alike; /* how many words of the page have the value of its last one */
    uint64_t error; /* 1 if a system call failed */
};

static volatile uint64_t *page(uint64_t number)
{
    return (volatile uint64_t *)(AREA + number * PAGE_SIZE);
}

static struct answer look(uint64_t number)
{
    volatile uint64_t *words = page(number);
    struct answer answer = {.first = words[0]};
    for (int i = 0; i < WORDS; i++)
        answer.alike += words[i] == words[WORDS - 1];
    return answer;
}

static int map(uint64_t first, uint64_t count)
{
    return mmap((void *)page(first), count * PAGE_SIZE, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
}

static struct answer obey(struct command command)
{
    char *start = (char *)page(command.page);
    size_t size = command.count * PAGE_SIZE;
    struct answer answer = {0};
    switch (command.what) {
    case 'r':
        return look(command.page);
    case 'w': /* the first word of each page of a range, in turn */
        for (uint64_t i = 0; i < command.count; i++)
            page(command.page + i)[0] = command.value;
        break;
    case 'f': /* every word of each page of a range */
        for (uint64_t i = 0; i < command.count * WORDS; i++)
            page(command.page)[i] = command.value;
        break;
    case 'd':
        answer.error = madvise(start, size, MADV_DONTNEED) != 0;
        break;
    case 'u':
        answer.error = munmap(start, size) != 0 || map(command.page, command.count);
        break;
    case 'p':
        answer.error = mprotect(start, size, (int)command.value) != 0;
        break;
    case 'R': /* have the manager write to the page: this many bytes come from standard input */
        answer.error = read(0, start, (size_t)command.value) != (ssize_t)command.value;
        break;
    case 'S': /* have the manager read the page: its first bytes go to standard error, which is thrown away */
        answer.error = write(2, start, (size_t)command.value) != (ssize_t)command.value;
        break;
    default:
        exit(2);
    }
    return answer;
}

int main(void)
{
    struct command command;
    struct answer answer = {.error = (uint64_t)map(0, PAGES)};
    while (write(1, &answer, sizeof answer) == sizeof answer && read(0, &command, sizeof command) == sizeof command)
        answer = obey(command);
    return 0;
}

/* mmap, munmap, mprotect, mremap, madvise, mincore and brk: results, errors and contents at the edges. */
#include "show.h"
#include <sys/mman.h>
#include <stdint.h>

enum { PAGE = 4096 };
#define RW (PROT_READ | PROT_WRITE)
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)

static unsigned char *pages(int count)
{
    unsigned char *memory = mmap(NULL, count * PAGE, RW, PRIVATE, -1, 0);
    if (memory == MAP_FAILED) {
        printf("no memory\n");
        exit(1);
    }
    return memory;
}

static int all(const unsigned char *memory, long size, int value)
{
    for (long i = 0; i < size; i++)
        if (memory[i] != value)
            return 0;
    return 1;
}

static void mapping(void)
{
    unsigned char *memory = pages(8);
    CHECK(all(memory, 8 * PAGE, 0));
    memset(memory, 7, 8 * PAGE);
    SHOW(mmap(NULL, 0, RW, PRIVATE, -1, 0));
    SHOW(mmap(NULL, PAGE, RW, MAP_ANONYMOUS, -1, 0));
    SHOW(mmap(NULL, PAGE, RW, MAP_PRIVATE, -1, 0));
    SHOW(mmap(NULL, PAGE, RW, MAP_PRIVATE, 77, 0));
    SHOW(mmap(NULL, (size_t)-PAGE, RW, PRIVATE, -1, 0));
    SHOW(mmap(NULL, (size_t)1 << 46, RW, PRIVATE, -1, 0));
    SHOW(mmap(memory + 1, PAGE, RW, PRIVATE | MAP_FIXED, -1, 0));
    SHOW(mmap(memory, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE, -1, 0));
    CHECK(all(memory, 8 * PAGE, 7));
    CHECK(mmap(memory + 2 * PAGE, PAGE, RW, PRIVATE | MAP_FIXED, -1, 0) == memory + 2 * PAGE);
    CHECK(all(memory, 2 * PAGE, 7));
    CHECK(all(memory + 2 * PAGE, PAGE, 0));
    CHECK(all(memory + 3 * PAGE, 5 * PAGE, 7));
    SHOW(munmap(memory + 4 * PAGE, PAGE));
    SHOW(munmap(memory + 4 * PAGE, PAGE));
    CHECK(mmap(memory + 4 * PAGE, PAGE, RW, PRIVATE, -1, 0) == memory + 4 * PAGE);
    CHECK(all(memory + 4 * PAGE, PAGE, 0));
    CHECK(all(memory + 5 * PAGE, 3 * PAGE, 7));
    SHOW(munmap(memory + 1, PAGE));
    SHOW(munmap(memory, 0));
    SHOW(munmap(memory, (size_t)-PAGE));
    SHOW(munmap((void *)(1UL << 60), PAGE));
    SHOW(munmap(memory, 8 * PAGE - 5));
    SHOW(mprotect(memory, PAGE, PROT_READ));
}

static void protecting(void)
{
    unsigned char *memory = pages(4);
    memset(memory, 3, 4 * PAGE);
    SHOW(mprotect(memory + PAGE, PAGE, PROT_READ));
    CHECK(all(memory, 4 * PAGE, 3));
    SHOW(mprotect(memory + PAGE, PAGE, PROT_NONE));
    SHOW(write(1, memory + PAGE, 1));
    SHOW(mprotect(memory, 4 * PAGE, RW));
    CHECK(all(memory, 4 * PAGE, 3));
    SHOW(mprotect(memory + 1, PAGE, RW));
    SHOW(mprotect(memory, 0, RW));
    SHOW(mprotect(memory, PAGE, 0x40));
    SHOW(mprotect(memory, (size_t)-PAGE, RW));
    munmap(memory + PAGE, PAGE);
    SHOW(mprotect(memory + PAGE, PAGE, RW));
    SHOW(mprotect(NULL, PAGE, RW));
    unsigned char *code = mmap(NULL, PAGE, RW, PRIVATE, -1, 0);
    memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov eax, 42; ret */
    SHOW(mprotect(code, PAGE, PROT_READ | PROT_EXEC));
    SHOW(((int (*)(void))(uintptr_t)code)());
}

static void remapping(void)
{
    unsigned char *memory = pages(4), *moved;
    for (int i = 0; i < 4; i++)
        memset(memory + i * PAGE, i + 1, PAGE);
    CHECK(mremap(memory, 4 * PAGE, 2 * PAGE, 0) == memory);
    SHOW(mprotect(memory + 2 * PAGE, PAGE, RW));
    CHECK(mremap(memory, 2 * PAGE, 4 * PAGE, 0) == memory);
    CHECK(all(memory, PAGE, 1) && all(memory + PAGE, PAGE, 2) && all(memory + 2 * PAGE, 2 * PAGE, 0));
    mmap(memory + 4 * PAGE, PAGE, RW, PRIVATE | MAP_FIXED, -1, 0); /* in the way */
    mprotect(memory + 4 * PAGE, PAGE, PROT_READ);
    SHOW(mremap(memory, 4 * PAGE, 8 * PAGE, 0));
    moved = mremap(memory, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && moved != memory);
    CHECK(all(moved, PAGE, 1) && all(moved + PAGE, PAGE, 2) && all(moved + 2 * PAGE, 62 * PAGE, 0));
    SHOW(mprotect(memory, PAGE, RW));
    unsigned char *target = pages(8);
    memset(target, 9, 8 * PAGE);
    CHECK(mremap(moved, 64 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + PAGE) == target + PAGE);
    CHECK(all(target, PAGE, 9) && all(target + PAGE, PAGE, 1) && all(target + 2 * PAGE, PAGE, 2));
    CHECK(all(target + 3 * PAGE, 5 * PAGE, 9));
    SHOW(mremap(target, PAGE, PAGE, MREMAP_FIXED, target));
    SHOW(mremap(target, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + PAGE));
    SHOW(mremap(target + 1, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    SHOW(mremap(target, PAGE, 0, MREMAP_MAYMOVE));
    SHOW(mremap(target, PAGE, PAGE, 64));
    munmap(target, 8 * PAGE);
    SHOW(mremap(target, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    SHOW(mremap(NULL, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
}

static void advising(void)
{
    unsigned char *memory = pages(4);
    memset(memory, 5, 4 * PAGE);
    SHOW(madvise(memory + PAGE, 2 * PAGE, MADV_DONTNEED));
    CHECK(all(memory, PAGE, 5) && all(memory + PAGE, 2 * PAGE, 0) && all(memory + 3 * PAGE, PAGE, 5));
    SHOW(madvise(memory, PAGE, MADV_WILLNEED));
    SHOW(madvise(memory, PAGE, MADV_FREE));
    SHOW(madvise(memory + 1, PAGE, MADV_DONTNEED));
    SHOW(madvise(memory, 0, MADV_DONTNEED));
    SHOW(madvise(memory, PAGE, 12345));
    SHOW(madvise(memory, (size_t)-PAGE, MADV_DONTNEED));
    unsigned char present[4] = {0};
    memory = pages(4);
    memory[PAGE] = 1;
    SHOW(mincore(memory, 4 * PAGE, present));
    CHECK(!(present[0] & 1) && (present[1] & 1) && !(present[2] & 1));
    SHOW(mincore(memory + 1, PAGE, present));
    munmap(memory + PAGE, PAGE);
    SHOW(mincore(memory, 2 * PAGE, present));
    SHOW(madvise(memory, 2 * PAGE, MADV_DONTNEED));
    SHOW(msync(memory, PAGE, MS_SYNC));
    SHOW(msync(memory, 2 * PAGE, MS_SYNC));
    SHOW(msync(memory + 1, PAGE, MS_SYNC));
    SHOW(mlock(memory + 5, PAGE - 5));
    SHOW(mlock(memory, 2 * PAGE));
    SHOW(munlock(memory, PAGE));
}

static void breaking(void)
{
    unsigned char *start = sbrk(0);
    CHECK(sbrk(5) == start);
    CHECK((unsigned char *)sbrk(0) == start + 5);
    CHECK(sbrk(64 * PAGE) == start + 5);
    CHECK(all(start, 64 * PAGE, 0));
    memset(start, 6, 64 * PAGE);
    TRY(brk(start + PAGE));
    TRY(brk(start + 8 * PAGE));
    uintptr_t kept = ((uintptr_t)start + 2 * PAGE - 1) / PAGE * PAGE; /* the page of the lowest break stays */
    CHECK(all(start, PAGE, 6));
    CHECK(all((unsigned char *)kept, start + 8 * PAGE - (unsigned char *)kept, 0));
    CHECK(syscall(SYS_brk, 0) == (long)(start + 8 * PAGE));
    CHECK(syscall(SYS_brk, 1) == (long)(start + 8 * PAGE));
    CHECK(syscall(SYS_brk, -1L) == (long)(start + 8 * PAGE));
    CHECK(syscall(SYS_brk, 1L << 46) == (long)(start + 8 * PAGE));
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    mapping();
    protecting();
    remapping();
    advising();
    breaking();
    return 0;
}

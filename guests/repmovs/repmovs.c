/* repmovs: copies many pages with one string instruction, misaligned, overlapping and in both directions. Such an
 * instruction is interrupted in its middle: by every page fault, with RSI, RDI and RCX half-way, and the
 * direction flag set where it copies backwards.
 *
 *     repmovs [MIB [ROUNDS]]      ROUNDS 0: for ever
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "args.h"
#include "prng.h"

enum { MARGIN = 8192 }; /* bytes on either side of the area, for misaligned and shifted copies */

/* rep movsb, upwards. */
static void copy_bytes(unsigned char *to, const unsigned char *from, size_t count)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

/* rep movsq, upwards; `count` is in words. */
static void copy_words(unsigned char *to, const unsigned char *from, size_t count)
{
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

/* rep movsb, downwards from the last byte. */
static void copy_bytes_down(unsigned char *to, const unsigned char *from, size_t count)
{
    to += count - 1;
    from += count - 1;
    __asm__ volatile("std; rep movsb; cld" : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc");
}

/* rep movsq, downwards from the last word. */
static void copy_words_down(unsigned char *to, const unsigned char *from, size_t count)
{
    to += 8 * (count - 1);
    from += 8 * (count - 1);
    __asm__ volatile("std; rep movsq; cld" : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc");
}

/* Byte `i` of round `round`'s contents: of words, so that a shift by any number of bytes shows. */
static unsigned char content(uint64_t round, size_t i)
{
    return (unsigned char)(mix64(round << 48 | i >> 3) >> (i & 7) * 8);
}

static void write_content(unsigned char *area, size_t size, uint64_t round)
{
    for (size_t i = 0; i < size; i++)
        area[i] = content(round, i);
}

static void check_content(const unsigned char *area, size_t size, uint64_t round, const char *copy)
{
    for (size_t i = 0; i < size; i++) {
        if (area[i] != content(round, i)) {
            printf("round %llu, %s: byte %zu of %zu is wrong\n", (unsigned long long)round, copy, i, size);
            exit(1);
        }
    }
}

/* Fresh pages, so that a copy faults on every page that it writes. */
static unsigned char *fresh(size_t size)
{
    void *area = mmap(NULL, size + 2 * MARGIN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return area;
}

int main(int argc, char **argv)
{
    size_t size = (size_t)number_argument(argc, argv, 1, 8, 1, 1 << 16) << 20;
    long rounds = number_argument(argc, argv, 2, 0, 0, 1000000000);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (long round = 1; rounds == 0 || round <= rounds; round++) {
        uint64_t state = (uint64_t)round;
        size_t odd = 1 + random_below(&state, 4094);    /* misalignment */
        size_t shift = 8 + random_below(&state, 4000); /* how far an overlapping copy moves */
        unsigned char *source = fresh(size), *target = fresh(size);

        write_content(source + 3, size, (uint64_t)round);
        copy_bytes(target + odd, source + 3, size);
        check_content(target + odd, size, (uint64_t)round, "rep movsb");
        copy_words(source + 5, target + odd, size / 8);
        check_content(source + 5, size, (uint64_t)round, "rep movsq");
        copy_bytes_down(source + 5 + shift, source + 5, size);
        check_content(source + 5 + shift, size, (uint64_t)round, "rep movsb downwards, overlapping");
        copy_bytes(source + 1, source + 5 + shift, size);
        check_content(source + 1, size, (uint64_t)round, "rep movsb, overlapping");
        copy_words_down(source + 1 + shift, source + 1, size / 8);
        check_content(source + 1 + shift, size, (uint64_t)round, "rep movsq downwards, overlapping");
        copy_words(source + 1, source + 1 + shift, size / 8);
        check_content(source + 1, size, (uint64_t)round, "rep movsq, overlapping");

        munmap(source, size + 2 * MARGIN);
        munmap(target, size + 2 * MARGIN);
        printf("round %ld right\n", round);
    }
    return 0;
}

/* memvm's own calls, for programs that want to know that they are guests. Elsewhere they fail with ENOSYS.
 *
 * A program that has drawn random numbers, keys or names may be saved and brought back, more than once, or as many
 * clones at the same time: each of them has what was drawn before the save. The id here is another one after every
 * restore, and in every clone. Whoever keeps it beside what was drawn, and compares before use, knows when to draw anew.
 */
#ifndef GUESTS_MEMVM_H
#define GUESTS_MEMVM_H

#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { MEMVM_CALL_GENERATION = 0x6d760001 };

struct memvm_generation {
    unsigned char id[16]; /* random, new for each start, restore and clone */
    uint64_t restores;    /* how many restores lie behind this guest */
    uint32_t clone;       /* which clone this is, from 1; 0 if it was restored alone, or not at all */
    uint32_t clones;      /* how many were started together */
};

/* Fills in *generation. Returns 0, or -1 with errno: ENOSYS where there is no memvm that knows the call. */
static inline int memvm_generation(struct memvm_generation *generation)
{
    return syscall(MEMVM_CALL_GENERATION, generation, sizeof *generation) == sizeof *generation ? 0 : -1;
}

/* Whether this guest is not the one any more that filled in *before; 0 also where there is no memvm. */
static inline int memvm_generation_changed(const struct memvm_generation *before)
{
    struct memvm_generation now;
    return memvm_generation(&now) == 0 && memcmp(now.id, before->id, sizeof now.id) != 0;
}

#endif

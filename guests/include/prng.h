/* Deterministic random numbers: splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
 * generators", 2014). The same seed gives the same numbers on every machine and C library. */
#ifndef GUESTS_PRNG_H
#define GUESTS_PRNG_H

#include <stdint.h>

/* A 64-bit value that depends on every bit of `x`. */
static inline uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline uint64_t next_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return mix64(*state);
}

/* A number from 0 to `bound` - 1, for bounds far below 2^32. */
static inline uint64_t random_below(uint64_t *state, uint64_t bound)
{
    return ((next_random(state) >> 32) * bound) >> 32;
}

#endif

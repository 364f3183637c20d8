/* What is written into pages: zeros, text-like words (they compress about threefold) or random words (they do
 * not compress at all). Each page's contents follow from one seed, so they can be checked without a copy. */
#ifndef GUESTS_PAGES_H
#define GUESTS_PAGES_H

#include <stdint.h>
#include <string.h>

#include "prng.h"

enum { PAGE_SIZE = 4096, PAGES_PER_MIB = 256, WORDS_PER_PAGE = PAGE_SIZE / 8 };

enum page_kind { ZERO_PAGE, TEXT_PAGE, RANDOM_PAGE };

/* Sixteen words of eight letters, so that four random bits choose one. */
static const char page_words[16][9] = {
    "the page", " is read", " and the", " memory ", "of guest", "s keeps ", "all that", " a fault",
    " loads, ", "or saves", ".\nThen w", "ritten a", "gain, it", " stands ", "for what", " it was ",
};

static inline void fill_page(void *page, enum page_kind kind, uint64_t seed)
{
    uint64_t *words = page;
    if (kind == ZERO_PAGE) {
        memset(page, 0, PAGE_SIZE);
    } else if (kind == TEXT_PAGE) {
        for (int i = 0; i < WORDS_PER_PAGE; i += 16) {
            uint64_t choices = next_random(&seed);
            for (int j = 0; j < 16; j++, choices >>= 4)
                memcpy(&words[i + j], page_words[choices & 15], 8);
        }
    } else {
        for (int i = 0; i < WORDS_PER_PAGE; i++)
            words[i] = next_random(&seed);
    }
}

#endif

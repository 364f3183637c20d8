/* Command-line arguments that are numbers, checked: a typing error is a message and status 64, not a strange run. */
#ifndef GUESTS_ARGS_H
#define GUESTS_ARGS_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { EXIT_USAGE = 64 }; /* EX_USAGE of sysexits.h */

/* Argument `index` as a number from `low` to `high`; `fallback` where the argument is not given. */
static inline long number_argument(int argc, char **argv, int index, long fallback, long low, long high)
{
    if (index >= argc)
        return fallback;
    char *end;
    errno = 0;
    long value = strtol(argv[index], &end, 10);
    if (errno != 0 || end == argv[index] || *end != '\0' || value < low || value > high) {
        fprintf(stderr, "%s: argument %d is %s, and must be a number from %ld to %ld\n", argv[0], index,
                argv[index], low, high);
        exit(EXIT_USAGE);
    }
    return value;
}

#endif

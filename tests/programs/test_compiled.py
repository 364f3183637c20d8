"""Programs compiled here, statically, with gcc's and musl's C libraries."""

from __future__ import annotations

import shutil
from itertools import product
from math import ceil
from pathlib import Path

import pytest

from tests.programs.conftest import Compile
from tests.programs.interrupted import MANNERS, Job, Manner, dealt, finish_after_save, seeded_moments

SIEVE = r"""
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    for (long limit = 1000000; limit <= 12000000; limit += 1000000) {
        char *composite = calloc(limit + 1, 1);
        long count = 0, last = 0;
        for (long n = 2; n <= limit; n++) {
            if (composite[n]) continue;
            count++, last = n;
            for (long m = n * n; m <= limit; m += n) composite[m] = 1;
        }
        printf("%ld primes up to %ld, the last is %ld\n", count, limit, last);
        free(composite);
    }
}
"""
LETTERS = r"""
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* Reads all of its input into a buffer that grows (so it moves), and prints its lines' lengths and sums. */
int main(void) {
    size_t size = 0, room = 16;
    char *all = malloc(room);
    int c;
    while ((c = getchar()) != EOF) {
        if (size == room) all = realloc(all, room *= 2);
        all[size++] = (char)c;
    }
    for (int pass = 1; pass <= 12; pass++) {
        unsigned long sum = pass, line = 0, start = 0;
        for (size_t i = 0; i < size; i++) {
            sum = sum * 31 + (unsigned char)toupper(all[i]);
            if (all[i] != '\n') continue;
            if (++line % 500 == 0) printf("%lu: %zu %lx\n", line, i - start, sum);
            start = i + 1;
        }
        printf("%zu bytes, %lu lines, %lx\n", size, line, sum);
    }
}
"""
WAVES = r"""
#include <math.h>
#include <stdio.h>
int main(void) {
    double sum = 0;
    for (int i = 1; i <= 20000000; i++) {
        sum += sin(i) * exp(-1.0 / i) / sqrt(i);
        if (i % 1000000 == 0) printf("%d %.17g\n", i, sum);
    }
}
"""
SOURCES = {"sieve": (SIEVE, "empty"), "letters": (LETTERS, "large"), "waves": (WAVES, "empty")}
COMPILERS = ["gcc", "musl-gcc"]
_SHARE = ceil(len(MANNERS) / (len(SOURCES) * len(COMPILERS)))
"""Of the manners, for each program from each compiler."""
CASES = [
    pytest.param(name, compiler, manner, id=f"{name}-{compiler}-{manner}")
    for number, (name, compiler) in enumerate(product(SOURCES, COMPILERS))
    for manner in dealt(number * _SHARE, _SHARE)
]


@pytest.mark.parametrize(("name", "compiler", "manner"), CASES)
def test_saved_in_the_middle_and_restored(
    name: str, compiler: str, manner: Manner, compile_static: Compile, inputs: dict[str, Path], tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    source, stdin = SOURCES[name]
    job = Job((str(compile_static(source, compiler)),), inputs[stdin], ram="128M")
    expected = job.native()
    moment = seeded_moments(f"{name} {compiler} {manner}", 0.3, 1)[0]
    assert finish_after_save(job, moment, manner, tmp_path) == expected

"""Input for real programs: made once a session, from a seed, megabytes of it."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

_SYLLABLES = ["ka", "to", "mi", "ren", "sol", "va", "ber", "lin", "dor", "u", "es", "tri", "qu", "ang", "ohm"]

_DIFFERENT_LINES = 30_000
"""Making them takes the time; a text is drawn from them."""


def words(size: int, seed: int = 1) -> bytes:
    """Text of about `size` bytes: lines of made-up words and numbers, in any order and some of them often."""
    chance = random.Random(seed)
    vocabulary = ["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4))) for _ in range(3000)]
    lines = [
        f"{chance.randrange(100_000)} {' '.join(chance.choices(vocabulary, k=chance.randint(2, 9)))}"
        for _ in range(_DIFFERENT_LINES)
    ]
    length = sum(map(len, lines)) / len(lines) + 1
    return "\n".join(chance.choices(lines, k=round(size / length))).encode() + b"\n"


def noise(size: int, seed: int = 2) -> bytes:
    """Bytes that nothing compresses."""
    return random.Random(seed).randbytes(size)


def make_inputs(folder: Path) -> dict[str, Path]:
    """Write the inputs; by name."""
    text = words(2 << 20)
    contents = {
        "text": text,
        "large": words(12 << 20, seed=3),
        "noise": noise(24 << 20),
        "packed": gzip.compress(words(12 << 20, seed=4), mtime=0),
        "sorted": b"".join(sorted(text.splitlines(keepends=True))),
        "pi": b"scale=900\n4*a(1)\n",
        "factorials": b"define f(n) { if (n < 2) return 1; return n * f(n - 1); }\nf(900)\n2^9000\nsqrt(2)\n",
        "empty": b"",
    }
    paths = {}
    for name, data in contents.items():
        paths[name] = folder / name
        paths[name].write_bytes(data)
    return paths

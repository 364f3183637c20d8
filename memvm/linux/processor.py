"""What the kernel says of the processor: the words of /proc/cpuinfo's flags."""

from __future__ import annotations


def processor_flags() -> frozenset[str]:
    """What the first processor has and the kernel lets programs use (arch/x86/include/asm/cpufeatures.h).

    Raises OSError.
    """
    with open("/proc/cpuinfo", "rb", buffering=0) as file:
        text = file.read(1 << 14).decode(errors="replace")
    for line in text.splitlines():
        name, _, words = line.partition(":")
        if name.strip() == "flags":
            return frozenset(words.split())
    return frozenset()

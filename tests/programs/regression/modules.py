"""Which of python3's own regression tests are run in guests, and what is known of those that are not.

All of the package are run by tools/regression, but for LEFT_OUT. What a test needs that no guest has (another process,
a socket) makes it skip itself, natively and in a guest: within.py sees to that, and so no list of such tests is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

QUICK = (
    ("test_math", "test_json", "test_re", "test_struct", "test_zlib", "test_decimal", "test_sqlite3"),
    (
        "test_thread",
        "test_threading_local",
        "test_contextlib",
        "test_fileio",
        "test_memoryio",
        "test_tempfile",
        "test_glob",
    ),
    ("test_bytes", "test_itertools", "test_set", "test_dict", "test_functools", "test_collections", "test_enum"),
    ("test_csv", "test_gzip", "test_binascii", "test_hashlib", "test_unicodedata", "test_marshal", "test_plistlib"),
    ("test_cmath", "test_complex", "test_float", "test_fractions", "test_array", "test_memoryview", "test_heapq"),
    ("test_generators", "test_coroutines", "test_exceptions", "test_traceback", "test_configparser", "test_textwrap"),
)
"""What the test suite runs: each row in one guest. All others take minutes."""

LEFT_OUT: Mapping[str, str] = {
    "test_largefile": "it writes files of gigabytes, which a guest has in memory",
}
"""Modules that are not run, and why."""

OTHERWISE: Mapping[str, str] = {
    "OpenptyTest": "no pseudo-terminals",
    "PtyTest": "no pseudo-terminals",
    "TestFcntl.test_fcntl_64_bit": "no F_NOTIFY",
    "TestFcntl.test_fcntl_f_pipesize": "pipes keep their size",
    "LargeMmapTests": "files of gigabytes are in a guest's memory",
    "test_larger_than_32_bit_times": "it asks for times beyond the year 2106",
    "xattr": "no extended attributes",
    "ExtendedAttributeTests": "no extended attributes",
    "named_pipe": "no named pipes",
    "fifo": "no named pipes",
    "FileTests.test_splice": "no splice: programs read and write instead",
    "MemfdCreateTests.test_memfd_create": "no memory files",
    "ProgramPriorityTests": "nice values stay as they are",
    "test_get_and_set_scheduler_and_param": "it asks about its parent, who is not there",
    "test_pidfd_open": "no descriptors of processes",
    "PidfdSignalTest": "no descriptors of processes",
    "test_preadv_flags": "no RWF_HIPRI",
    "test_search_anchor_at_beginning": "it fails where it is not run for 0.1 s, and a busy machine sees to that",
}
"""Parts of the names of tests that pass natively and do not in a guest, and why."""

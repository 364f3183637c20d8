"""Runs python3's own regression tests as guests, all of those that can be, and compares with what they do natively.

    tools/regression [MODULE ...]

Without names it runs every module of python3's package of tests (apt-get install libpython3-testsuite) but those that
tests/programs/regression/modules.py leaves out. MEMVM_TEST_PYTHON names another python3, whose own tests are run then.
The exit status is 1 if a test passes natively and not in a guest, and nobody has said why.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, also when this file is run as a script

from tests.programs.regression.modules import LEFT_OUT  # noqa: E402
from tests.programs.regression.runs import PYTHON, Run, otherwise, run_as_guest, run_natively  # noqa: E402

_LIMIT = 120.0
"""Seconds for a module."""


def main() -> int:
    """Run them, a line each."""
    modules = sys.argv[1:] or [name for name in _all_modules() if name not in LEFT_OUT]
    passed = surprises = 0
    for name in modules:
        began = time.monotonic()
        try:
            native, guest = run_natively([name], _LIMIT), run_as_guest([name], _LIMIT)
        except subprocess.TimeoutExpired as late:
            print(f"{name}: not done after {late.timeout:.0f} s", flush=True)
            surprises += 1
            continue
        found = _surprises(name, native, guest)
        surprises += len(found)
        if name in guest.modules:
            outcomes = guest.modules[name]
            passed += outcomes.count("passed")
            figures = f"{outcomes.count('passed')} passed, {outcomes.count('skipped')} skipped"
            print(f"{name}: {figures}, {time.monotonic() - began:.1f} s", flush=True)
        for line in found:
            print(f"    {line.strip().replace(chr(10), chr(10) + '    ')}", flush=True)
    print(f"{passed} tests passed in guests; {surprises} did not that pass natively")
    return 1 if surprises else 0


def _surprises(name: str, native: Run, guest: Run) -> list[str]:
    if name not in native.modules:
        return []  # it cannot be run at all
    if name not in guest.modules:
        return [f"the guest ended with {guest.code} before the tests did:\n{guest.complaints}"]
    return list(otherwise(native.modules[name], guest.modules[name]))


def _all_modules() -> list[str]:
    code = "import pkgutil, test; print(*sorted(m.name for m in pkgutil.iter_modules(test.__path__)))"
    asked = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return [name for name in asked.stdout.split() if name.startswith("test_")]


if __name__ == "__main__":
    sys.exit(main())

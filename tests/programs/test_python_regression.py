"""python3's own regression tests, run in guests: what passes natively passes there.

tools/regression runs all of them, which takes some minutes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.checkpoint.lives import SCALE
from tests.programs.regression.modules import LEFT_OUT, OTHERWISE, QUICK
from tests.programs.regression.runs import PYTHON, otherwise, run_as_guest, run_natively

LIMIT = 60 * SCALE


def _there(modules: tuple[str, ...]) -> list[str]:
    """Those that this python3 has: Debian's package leaves some out."""
    if not Path(PYTHON).exists():
        pytest.skip(f"no {PYTHON} here")
    code = "import importlib.util, sys; print(*(m for m in sys.argv[1:] if importlib.util.find_spec(f'test.{m}')))"
    asked = subprocess.run([PYTHON, "-c", code, *modules], capture_output=True, text=True, check=True, cwd="/")
    if not (found := asked.stdout.split()):
        pytest.skip("python3's tests are not here: apt-get install libpython3-testsuite")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("modules", QUICK, ids=lambda modules: modules[0])
def test_what_passes_natively_passes_in_a_guest(modules: tuple[str, ...]) -> None:
    found = _there(modules)
    native, guest = run_natively(found, LIMIT), run_as_guest(found, LIMIT)
    assert native.code == 0, native.complaints
    assert guest.code == 0, guest.complaints
    assert list(guest.modules) == list(native.modules) == found
    for name in found:
        assert not list(otherwise(native.modules[name], guest.modules[name]))
        assert guest.modules[name].count("passed") > 0


def test_lists_have_reasons() -> None:
    assert all({**LEFT_OUT, **OTHERWISE}.values())

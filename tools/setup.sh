# The set-up that tools/check, tools/demo and tools/bench share: source this file, then call set_up.
#
# It brings system packages (installs them as root, else names the command that does), .venv with memvm and its
# test tools in it, and the guests' build. All of it is quick when there is nothing to do. What it has to say goes
# to standard error: standard output belongs to the tool. Afterwards $root is the checkout, $python its interpreter.
# shellcheck shell=bash

set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
nobody=65534

set_up() {
    # One at a time: two tools started together would otherwise build one .venv twice at once.
    {
        flock 9
        install_system_packages
        make_venv
        "$python" "$root/tools/build_guests.py"
    } 9<"$root" >&2
}

# A TPM in software, and the library that speaks to TPMs: for the tests alone, which skip what they cannot have. It is
# no part of set_up, since building the library takes half a minute.
set_up_tpm() {
    {
        flock 9
        install_tpm
    } 9<"$root" >&2
}

install_tpm() {
    if ((EUID == 0)) && ! { command -v swtpm && pkg-config --exists tss2-esys; } >/dev/null 2>&1; then
        local install=(apt-get install -y --no-install-recommends swtpm libtss2-dev pkg-config python3-dev)
        export DEBIAN_FRONTEND=noninteractive
        "${install[@]}" </dev/null || { apt-get update </dev/null && "${install[@]}" </dev/null; } ||
            say "there is no TPM in software here, and its tests will be skipped"
    fi
    "$python" -c 'import tpm2_pytss' 2>/dev/null && return
    if pkg-config --exists tss2-esys 2>/dev/null; then
        say "building tpm2-pytss into $venv"
        "$python" -m pip install --quiet --disable-pip-version-check --editable "$root[tpm]" ||
            say "tpm2-pytss cannot be built here, and the tests of TPMs will be skipped"
    else
        say "no TPM library here (libtss2-dev): the tests of TPMs will be skipped"
    fi
}

say() {
    printf 'set-up: %s\n' "$*" >&2
}

install_system_packages() {
    install_for_tests
    local missing
    read -ra missing <<<"$(missing_packages)"
    ((${#missing[@]})) || return 0
    local install=(apt-get install -y --no-install-recommends "${missing[@]}")
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        say "system packages are missing. As root: ${install[*]}"
        exit 1
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # A fresh machine has no package lists, an old one has lists of packages that are gone: update, then try again.
    "${install[@]}" </dev/null || { apt-get update </dev/null && "${install[@]}" </dev/null; }
    read -ra missing <<<"$(missing_packages)"
    if ((${#missing[@]})); then
        say "still not there after the installation: ${missing[*]} (Python has to be 3.11 or later: Debian 12)"
        exit 1
    fi
}

# What only some tests want, which are skipped where it is not: no reason to give up if it cannot be had.
install_for_tests() {
    local wanted=() version
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        return
    fi
    command -v g++ >/dev/null || wanted+=(g++)
    # python3's own tests. They bring the python3 that they fit, so this comes before .venv is made.
    if version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])') &&
        ! (cd / && /usr/bin/python3 -c 'import test.test_math') 2>/dev/null; then
        wanted+=("libpython$version-testsuite")
    fi
    ((${#wanted[@]})) || return 0
    say "installing for some tests: ${wanted[*]}"
    local install=(apt-get install -y --no-install-recommends "${wanted[@]}")
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" </dev/null || { apt-get update </dev/null && "${install[@]}" </dev/null; } ||
        say "cannot install them: some tests will be skipped"
}

# Debian's names of the packages to install, on one line.
missing_packages() {
    local missing=()
    find_python >/dev/null || missing+=(python3 python3-venv)
    { command -v gcc >/dev/null && [[ $(gcc -print-file-name=libc.a) == /* ]]; } || missing+=(gcc libc6-dev)
    command -v musl-gcc >/dev/null || missing+=(musl-tools)
    is_static busybox || missing+=(busybox-static)
    # What tests/programs/ runs as guests beside what every Debian has, what disks are compared with, and a library for
    # guests that decrypt; the tests skip what is not there.
    local package
    if ((EUID == 0)); then
        for package in sqlite3 lua5.4 bc xz-utils bzip2; do
            command -v "${package%-utils}" >/dev/null || missing+=("$package")
        done
        [[ -x /usr/sbin/cryptsetup || -x /sbin/cryptsetup ]] || missing+=(cryptsetup-bin)
        [[ -e /usr/include/nettle/xts.h ]] || missing+=(nettle-dev)
    fi
    echo "${missing[*]}"
}

is_static() {
    local file
    file=$(command -v "$1") || return 1
    grep -Eq 'not a dynamic executable|statically linked' <<<"$(LC_ALL=C ldd "$file" 2>&1)"
}

# The interpreter to make .venv from: the system's own where it will do.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.{13,12,11}; do
        candidate=$(command -v "$candidate") || continue
        if can_make_venv "$candidate" 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# As root the suite runs as an ordinary user too, who cannot reach an interpreter in somebody's home directory.
can_make_venv() {
    local test='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
    if ((EUID == 0)); then
        (cd / && as_nobody "$1" -c "$test")
    else
        "$1" -c "$test"
    fi
}

as_nobody() {
    setpriv --reuid="$nobody" --regid="$nobody" --clear-groups --no-new-privs -- "$@"
}

make_venv() {
    local base made_from=$venv/made-from installed=$venv/installed-pyproject.toml
    base=$(find_python)
    # Scripts in a virtual environment hold its path, and its packages are one interpreter's.
    local origin="$venv $base $("$base" --version)"
    if [[ ! -x $python || ! -f $made_from || $(<"$made_from") != "$origin" ]]; then
        say "making $venv from $base"
        "$base" -m venv --clear "$venv"
        echo "$origin" >"$made_from"
    fi
    if ! cmp --silent "$root/pyproject.toml" "$installed"; then
        say "installing memvm and its test tools into $venv"
        "$python" -m pip install --quiet --disable-pip-version-check --editable "$root[test]"
        cp "$root/pyproject.toml" "$installed"
    fi
}

#!/bin/sh
# Run the rings' tests and the stress test of threads on a free-threaded Python: make test-freethreaded.
#
# Builds CPython 3.13 without the GIL from Debian's source package, once, in ~/.cache/memifrt/python3.13t (some minutes on
# two cores), makes a virtual environment in build/freethreaded, and installs memifrt there from a copy of this checkout.
# Arguments go to pytest; they may name other tests. OPERATIONS says how many steps each thread of the stress test takes.
#
# Needs apt-get, a C compiler, make, and the headers of OpenSSL, libffi and zlib. apt's own configuration stays as it is:
# the source package is looked up with a list of its own, because the system's suite may lack python3.13.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/memifrt
prefix=$cache/python3.13t
venv=$root/build/freethreaded/venv
copy=$root/build/freethreaded/tree

say() { echo "test-freethreaded: $*" >&2; }

# Run a command whose output matters only when it fails.
quietly() {
    log=$1
    shift
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; say "failed: $*"; exit 1; }
}

apt_sources() {
    apt-get -qq -o APT::Sandbox::User=root -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD" -o Dir::Cache::Archives="$PWD/archives" "$@"
}

build_python() {
    for header in openssl/ssl.h ffi.h zlib.h; do
        echo "#include <$header>" | cc -E - >/dev/null 2>&1 || {
            say "<$header> is missing: on Debian, apt install gcc make libssl-dev libffi-dev zlib1g-dev"
            exit 1
        }
    done
    say "building CPython 3.13 without the GIL in $prefix, which takes some minutes, once"
    rm -rf "$prefix" "$prefix.build"
    mkdir -p "$prefix.build/lists/partial" "$prefix.build/archives/partial" "$prefix.build/source"
    cd "$prefix.build"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb-src [signed-by=$keyring] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} trixie main" >sources.list
    say "fetching Debian's source package of python3.13"
    quietly update.log apt_sources update
    quietly source.log apt_sources source --only-source --download-only python3.13
    tar -xf python3.13_*.orig.tar.xz -C source --strip-components=1
    cd source
    say "./configure --disable-gil && make -j2 && make install"
    quietly ../configure.log ./configure --disable-gil --prefix="$prefix"
    quietly ../make.log nice make -j2
    quietly ../install.log make install
    cd "$root"
    rm -rf "$prefix.build"
    touch "$prefix/.complete"
}

make_venv() {
    say "making a virtual environment in $venv"
    rm -rf "$venv"
    "$prefix/bin/python3.13t" -m venv "$venv"
    # Wheels alone: not every version of everything has one for this Python, and pip then takes an older version.
    pip() { "$venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: "$@"; }
    pip pytest pytest-timeout pytest-xdist hypothesis
    pip numpy || say "no wheel of NumPy for this Python: its tests are skipped"
    touch "$venv/.complete"
}

[ -e "$prefix/.complete" ] || build_python
[ -e "$venv/.complete" ] && [ "$venv/.complete" -nt "$prefix/.complete" ] || make_venv

# A copy: what this Python builds never comes near the rings that are installed in the checkout.
rm -rf "$copy"
mkdir -p "$copy/source" "$copy/tests"
(cd "$root" && tar -cf - --exclude='__pycache__' --exclude='_native.c' --exclude='_sigbus.c' \
    --exclude='_eventfd.c' --exclude='_packets.c' --exclude='_dispatch.c' --exclude='*.so' \
    setup.py pyproject.toml README.md LICENSE memifrt_command.py memifrt) | tar -xf - -C "$copy/source"
(cd "$root" && tar -cf - --exclude='__pycache__' tests examples benchmarks fuzz docs/memory-order.md pyproject.toml) | tar -xf - -C "$copy"
say "installing memifrt"
"$venv/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps "$copy/source"
rm -rf "$copy/source"

cd "$copy"
"$venv/bin/python" -c '
import sys, memifrt.ring._native
sys.exit("memifrt switched the GIL on" if sys._is_gil_enabled() else 0)'
case "$*" in
*tests/*) ;;
*) set -- "$@" tests/ring tests/memory ;;
esac
MEMIFRT_OPERATIONS=${OPERATIONS:-200000} exec "$venv/bin/python" -m pytest -p no:cacheprovider -p no:memifrt -q "$@"

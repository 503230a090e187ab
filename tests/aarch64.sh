#!/bin/sh
# Compile the native modules for aarch64 and run tests of rings and memory on them under QEMU: make test-aarch64.
#
# Fetches an arm64 Python with NumPy and pytest from Debian, once, into ~/.cache/memifrt/aarch64 (about 100 MB to fetch),
# compiles with Debian's cross compiler, and runs each program with qemu-user. Needs neither root nor a chroot: Python
# starts its children through a script that calls QEMU, so the kernel need not know aarch64's programs.
# PYTHON is an interpreter with Cython. Arguments go to pytest; they may name other tests. Without a -k, the tests that
# take longest are left out: ARGS='-k ""' runs them too.
# What is compiled stays in ~/.cache/memifrt/aarch64/built, and is compiled again when a source of it has changed.
#
# QEMU shows that the code is right for another instruction set, other sizes and other system call numbers. It does not
# show that the order of memory operations is right: x86-64 executes the translated loads and stores in its own order.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/memifrt
system=$cache/aarch64
copy=$root/build/aarch64
suite=trixie
# Left out: tests with many steps of which each is Python, and tests that start many programs.
quick="not model and not wrap and not every_ttl and not random_writes and not allocations and not attack and not vectorized"
packages="python3-dev python3-setuptools python3-numpy python3-pytest python3-pytest-timeout python3-pytest-xdist python3-hypothesis"

say() { echo "test-aarch64: $*" >&2; }

# Run a command whose output matters only when it fails.
quietly() {
    log=$1
    shift
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; say "failed: $*"; exit 1; }
}

need() {
    for name in $1; do command -v "$name" && return; done
    say "${1%% *} is missing: install it with 'apt install $2' (Debian)"
    exit 1
}

# apt's own configuration and its list of what is installed stay as they are.
apt_arm64() {
    apt-get -qq -o APT::Sandbox::User=root -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
        -o APT::Install-Recommends=false -o Debug::NoLocking=true -o Dir::Etc::SourceList="$system.new/sources.list" \
        -o Dir::Etc::SourceParts=- -o Dir::State="$system.new" -o Dir::State::status="$system.new/status" \
        -o Dir::State::Lists="$system.new/lists" -o Dir::Cache="$system.new" -o Dir::Cache::Archives="$system.new/archives" "$@"
}

fetch_system() {
    need apt-get apt >/dev/null
    need dpkg-deb dpkg >/dev/null
    say "fetching an arm64 Python from Debian $suite into $system, once"
    rm -rf "$system" "$system.new"
    mkdir -p "$system.new/lists/partial" "$system.new/archives/partial" "$system.new/root/usr/bin" "$system.new/root/usr/lib"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} $suite main" >"$system.new/sources.list"
    : >"$system.new/status"
    quietly "$system.new/log" apt_arm64 update
    # shellcheck disable=SC2086
    quietly "$system.new/log" apt_arm64 install --yes --download-only $packages
    ln -s usr/lib usr/bin "$system.new/root"
    for package in "$system.new"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" >"$system.new/files.tar"
        tar -xf "$system.new/files.tar" --keep-directory-symlink -C "$system.new/root"
    done
    # These links are made when the packages are installed, which here nobody does.
    lib=$system.new/root/usr/lib/aarch64-linux-gnu
    for name in blas lapack; do ln -s "$name/lib$name.so.3" "$lib/lib$name.so.3"; done
    rm -rf "$system.new/archives" "$system.new/lists" "$system.new"/*.bin "$system.new/files.tar"
    mv "$system.new" "$system"
    touch "$system/.complete"
}

qemu=$(need "qemu-aarch64-static qemu-aarch64" qemu-user-static)
need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu >/dev/null
"$python" -c 'import Cython' 2>/dev/null || { say "$python has no Cython: run make test-aarch64, or set PYTHON"; exit 1; }
[ -e "$system/.complete" ] || fetch_system

# QEMU takes most of a minute to compile what Python imports: the second time, it is there.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$system/bytecode"

# The interpreter's path, for it and for the children that it starts, is that of a script.
arm=$system/root/usr/bin/python3-qemu
real=$(readlink -f "$system/root/usr/bin/python3")
printf '#!/bin/sh\nexec "%s" -L "%s" -0 "$0" "%s" "$@"\n' "$qemu" "$system/root" "$real" >"$arm.$$"
chmod +x "$arm.$$"
mv "$arm.$$" "$arm"

# A copy: what is compiled here never comes near the rings that are installed in the checkout.
rm -rf "$copy"
mkdir -p "$copy"
(cd "$root" && tar -cf - --exclude='__pycache__' --exclude='_native.c' --exclude='_sigbus.c' --exclude='_eventfd.c' \
    --exclude='_packets.c' --exclude='_dispatch.c' --exclude='*.so' setup.py pyproject.toml README.md LICENSE memifrt_command.py memifrt tests examples \
    benchmarks fuzz docs/memory-order.md) | tar -xf - -C "$copy"
cd "$copy"

build() {
    say "compiling"
    quietly cython.log "$python" -m cython -3 memifrt/ring/_native.pyx memifrt/system/_eventfd.pyx memifrt/memory/_sigbus.pyx \
        memifrt/poll/_dispatch.pyx memifrt/_packets.pyx
    # The compiler is this machine's own. The kernel starts it, because QEMU passes execve on.
    CFLAGS="--sysroot=$system/root -I$(echo "$system"/root/usr/include/python3.*)" quietly build.log "$arm" setup.py build_ext --inplace
    # The parts are optional: without this look, one that did not compile would only make its tests be skipped.
    "$arm" -c '
import platform, sys
import memifrt._packets, memifrt.memory._sigbus, memifrt.poll._dispatch, memifrt.ring._native, memifrt.system._eventfd
sys.exit(None if platform.machine() == "aarch64" else "not aarch64: " + platform.machine())' || {
        tail -n 30 build.log >&2
        say "failed: the compiled modules cannot be imported"
        exit 1
    }
    mkdir -p "$system/built"
    find memifrt -name '*.so' | tar -cf "$built.$$" -T -
    mv "$built.$$" "$built"
    # Only the newest are kept.
    find "$system/built" -name '*.tar' -printf '%T@ %p\n' | sort -rn | tail -n +5 | cut -d ' ' -f 2- | xargs -r rm -f
}

sources=$( (find memifrt -name '*.pyx' -o -name '*.px[di]' -o -name '*.h' | LC_ALL=C sort; echo setup.py) | xargs cat | sha256sum)
built=$system/built/${sources%% *}.tar
if [ -e "$built" ]; then tar -xf "$built"; else build; fi
case "$*" in
*tests/*) ;;
*) set -- "$@" tests/ring tests/memory ;;
esac
case " $* " in
*" -k"*) ;;
*) set -- -k "$quick" "$@" ;;
esac
exec "$arm" -u -m pytest -p no:cacheprovider -q -o timeout=900 "$@"

#!/bin/sh
# Run the tests on a Python of Debian's: make test-debian PYTHON=3.15, or tests/debian-python.sh 3.15 [pytest's arguments].
#
# Makes a chroot of Debian's testing with debootstrap, once, in ~/.cache/memifrt/debian-SUITE, and in it, for each Python, a
# virtual environment with the requirements of the dev extra. One that has no wheel for that Python is compiled if two
# minutes and a C compiler do, and is left out, and named, if not. The tests run on a copy of this checkout, whose compiled code is built there.
#
# SUITE is another suite of Debian's (sid has the newest Pythons), DEBIAN_MIRROR another mirror. Needs root, debootstrap,
# and the right to mount. The mounts are in a mount namespace of this script's own: they end with it, however it ends, and
# nobody else sees them.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
suite=${SUITE:-forky}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/memifrt
chroot=$cache/debian-$suite

say() { echo "debian-python: $*" >&2; }
fail() { say "$*"; exit 2; }

version=${1:-}
case $version in
3.[0-9] | 3.[0-9][0-9]) shift ;;
*) fail "name a version of Python, such as 3.15 (make test-debian PYTHON=3.15), not '$version'" ;;
esac
[ "$(id -u)" = 0 ] || fail "only root can make a chroot: run this as root"
for needed in debootstrap unshare flock; do
    command -v "$needed" >/dev/null || fail "$needed is missing: on Debian and Ubuntu, apt install debootstrap util-linux"
done
if [ -z "${MEMIFRT_MOUNTS_ARE_PRIVATE:-}" ]; then
    unshare --mount true 2>/dev/null || fail "mounting is not allowed here: in a container, it takes the capability SYS_ADMIN"
    MEMIFRT_MOUNTS_ARE_PRIVATE=1 exec unshare --mount "$0" "$version" "$@"
fi
unset MEMIFRT_MOUNTS_ARE_PRIVATE

# Run a command whose output matters only when it fails.
quietly() {
    log=$cache/debian-$suite.log
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "failed: $*"; }
}

inside() {
    env -u VIRTUAL_ENV -u PYTHONPATH -u PYTHONHOME -u TMPDIR -u XDG_CACHE_HOME -u XDG_RUNTIME_DIR -u MAKEFLAGS -u MAKELEVEL \
        HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PATH="/venv-$version/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" chroot "$chroot" "$@"
}

make_chroot() {
    say "making a chroot of Debian $suite in $chroot, which takes some minutes, once"
    rm -rf "$chroot"
    # A suite that is younger than this debootstrap is made as sid is.
    script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    quietly debootstrap --variant=minbase --include=ca-certificates "$suite" "$chroot" "$mirror" "$script"
    touch "$chroot/.complete"
}

mount_all() {
    # A mount point itself, because "ip netns exec" changes how mounts on / propagate.
    mount --bind "$chroot" "$chroot"
    mount --rbind /dev "$chroot/dev"
    mount --rbind /sys "$chroot/sys"
    mount -t proc proc "$chroot/proc"
    # On the disk, as some tests need a file that is not in memory.
    find "$chroot/tmp" -mindepth 1 -delete
    mount -t tmpfs tmpfs "$chroot/run"
    # The network as it is here: names, and the certificates of a proxy or a mirror.
    for shared in /etc/resolv.conf /etc/hosts /etc/ssl/certs; do
        [ -e "$shared" ] || continue
        [ -d "$shared" ] || : >>"$chroot$shared"
        mount --bind "$(realpath "$shared")" "$chroot$shared"
    done
}

# What the tests call besides Python, and the libraries that PySide6's wheel expects.
tools="gcc libc6-dev make iproute2 iputils-ping tcpdump tshark iperf3 libpcap0.8t64 procps libglib2.0-0t64 libegl1 libgl1 libxkbcommon0
    libdbus-1-3 libfontconfig1"

install_python() {
    say "installing Debian's python$version"
    # As here: proxies, and whether a mirror may be a frozen one.
    ! command -v apt-config >/dev/null || apt-config dump Acquire | grep -E '^Acquire::(Check-|https?::)' >"$chroot/etc/apt/apt.conf.d/99host"
    quietly inside apt-get -q update
    inside apt-cache show "python$version" >/dev/null 2>&1 ||
        fail "Debian $suite has no python$version; another suite may: SUITE=sid, or see https://packages.debian.org/python$version"
    # shellcheck disable=SC2086
    quietly inside apt-get -q install -y --no-install-recommends "python$version" "python$version-venv" "python$version-dev" $tools
    touch "$chroot/.python$version"
}

# The requirements of the dev extra that concern this Python, one a line.
requirements() {
    inside "/venv-$version/bin/python" - "$1" <<'END'
import sys
import tomllib

from pip._vendor.packaging.requirements import Requirement

with open(sys.argv[1], "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
for requirement in map(Requirement, extras["dev"]):
    if requirement.marker is None or requirement.marker.evaluate():
        requirement.marker = None
        print(str(requirement))
END
}

pip_install() { inside timeout "$limit" "/venv-$version/bin/pip" -q install --disable-pip-version-check "$@"; }

make_venv() {
    venv=$chroot/venv-$version
    if [ ! -e "$venv/bin/pip" ]; then
        rm -rf "$venv"
        quietly inside "python$version" -m venv "/venv-$version"
    fi
    requirements "/memifrt-$version/pyproject.toml" >"$venv/wanted.new"
    if ! cmp -s "$venv/wanted.new" "$venv/wanted"; then
        say "installing the dev extra's requirements"
        : >"$venv/left-out"
        : >"$venv/pip.log"
        # Wheels first: most of what has none for a young Python takes compilers and libraries of all kinds.
        limit=1200
        if ! pip_install --only-binary :all: -r "/venv-$version/wanted.new" >>"$venv/pip.log" 2>&1; then
            while read -r requirement; do
                { limit=600 && pip_install --only-binary :all: "$requirement"; } </dev/null >>"$venv/pip.log" 2>&1 ||
                    { limit=120 && pip_install --prefer-binary "$requirement"; } </dev/null >>"$venv/pip.log" 2>&1 ||
                    echo "$requirement" >>"$venv/left-out"
            done <"$venv/wanted.new"
        fi
        inside "/venv-$version/bin/python" -c 'import Cython, hypothesis, pytest, pytest_timeout, setuptools, xdist' ||
            fail "the tests cannot run without this; $venv/pip.log says what pip said"
        mv "$venv/wanted.new" "$venv/wanted"
    fi
    [ ! -s "$venv/left-out" ] || say "left out, because there is no wheel for Python $version, and none could be built:" $(cat "$venv/left-out")
}

copy_checkout() {
    rm -rf "$chroot/memifrt-$version"
    mkdir "$chroot/memifrt-$version"
    (cd "$root" && tar -cf - --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=./dist --exclude=./.nox --exclude=./.fuzz \
        --exclude='*.egg-info' --exclude=__pycache__ --exclude='.*_cache' --exclude='*.so' --exclude=_native.c --exclude=_eventfd.c \
        --exclude=_sigbus.c --exclude=./memifrt/_packets.c .) | tar -xf - -C "$chroot/memifrt-$version"
}

mkdir -p "$cache"
# One run at a time for each Python, because its copy of the checkout is replaced; and one that changes the chroot.
exec 8>"$cache/debian-$suite-$version.lock" 9>"$cache/debian-$suite.lock"
flock --nonblock 8 || fail "another run on Debian's python$version is under way"
flock 9
[ -e "$chroot/.complete" ] || make_chroot
mount_all
[ -e "$chroot/.python$version" ] || install_python
copy_checkout
make_venv
exec 9>&-

say "compiling memifrt"
(exec 8>&- && inside "/venv-$version/bin/pip" -q install --disable-pip-version-check --no-build-isolation --no-deps -e "/memifrt-$version")
say "running the tests on $(inside "/venv-$version/bin/python" -c '
import sys
import memifrt.ring._native, memifrt.system._eventfd
print("Python", sys.version.split()[0])')"
status=0
(exec 8>&- && inside sh -c 'cd "$1" && shift && exec python -m pytest -p no:cacheprovider "$@"' sh "/memifrt-$version" "$@") || status=$?
exit "$status"

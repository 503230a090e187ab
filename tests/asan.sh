#!/bin/sh
# The ring, hostile and attack tests on compiled rings that AddressSanitizer and UBSan watch over: make test-asan.
# Builds in a copy of the tree, build/asan: instrumented rings never come near those that are installed.
# PYTHON is the interpreter with the tests' requirements. Arguments go to pytest; they may name other tests.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
copy=$root/build/asan
mkdir -p "$copy"
for part in memifrt tests examples benchmarks fuzz; do
    rm -rf "${copy:?}/$part"
    [ ! -d "$root/$part" ] || cp -R "$root/$part" "$copy/"
done
rm -f "$copy"/memifrt/ring/_native.c "$copy"/memifrt/system/_eventfd.c "$copy"/memifrt/memory/_sigbus.c "$copy"/memifrt/poll/_dispatch.c "$copy"/memifrt/_packets.c "$copy"/memifrt/_*.so "$copy"/memifrt/*/_*.so
cp "$root/setup.py" "$root/memifrt_command.py" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$copy/"

cd "$copy"
CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g" \
    "$python" setup.py -q build_ext --inplace

# The interpreter itself is not instrumented: the runtimes come first, and its own allocator makes way for theirs, which
# sees each object's bounds. What the interpreter leaves at its end is no leak of ours.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
UBSAN_OPTIONS=print_stacktrace=1
PYTHONMALLOC=malloc
PYTHONPATH=$copy
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS PYTHONMALLOC PYTHONPATH
"$python" -c 'import memifrt.ring._native as ring, sys; sys.exit(not ring.__file__.startswith(sys.argv[1]))' "$copy"
case "$*" in
*tests/*) ;;
*)
    # atheris brings a sanitizer's runtime of its own, and counts no coverage beside this one: its inputs come at random.
    set -- "$@" -k "not led_by_coverage" tests/ring/test_vectorized.py tests/test_interface.py tests/queue
    for tests in tests/ring/test_ring*.py tests/system/test_fuzz*.py; do
        [ ! -e "$tests" ] || set -- "$@" "$tests"
    done
    ;;
esac
# The sanitizers make the longest tests several times slower: they get more than the usual two minutes.
exec "$python" -m pytest -p no:cacheprovider -o timeout=900 "$@"

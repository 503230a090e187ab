# make run   sets up .venv and runs the demo          make lint  ruff, mypy --strict, spelling and prose
# make test  sets up .venv and runs the tests         make wheel builds an sdist and, from it, a manylinux wheel into dist/
# make bench measures, and writes docs/benchmarks.md   make clean removes what these made
# make fuzz  hostile peers and memory, TIME=60 seconds  make soak  traffic and killed peers, TIME=600 seconds
# make test-patched  the tests that gevent's patches can change, under them
# make test-asan  the rings' tests under AddressSanitizer and UBSan
# make test-freethreaded  the rings' tests on a Python without the GIL, which it builds once
# make test-aarch64  the rings' tests on code that is compiled for aarch64, under QEMU
# make test-vpp   memifrt and a real VPP: the one on PATH, or MEMIFRT_VPP=PATH
# make test-debian PYTHON=3.15  the tests on a Python of Debian testing, in a chroot (root, debootstrap)
# make test-containers  memifrt in podman's containers (root, podman, debootstrap)
# make docs  builds the documentation into build/docs  make man   the man page, into build/man
# make screenshots  the site's pictures of terminals and of Wireshark, into docs/pictures (Wireshark, Xvfb)
# make help  this list

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Two more than there are cores: many tests wait for programs that they start.
JOBS   ?= $(shell echo $$(($$(nproc) + 2)))

# Bytecode is kept even where the environment says otherwise: the tests start many programs, and each would compile
# all of memifrt first.
unexport PYTHONDONTWRITEBYTECODE

# What the installed package is made of; the rest of it is used where it lies.
BUILT  := pyproject.toml setup.py $(wildcard memifrt/*.pyx memifrt/*/*.pyx memifrt/*/*.pxd memifrt/*/*.pxi memifrt/*/*.h)

.PHONY: run test test-patched test-asan test-freethreaded test-aarch64 test-vpp test-debian clean-debian test-containers \
	lint wheel bench fuzz soak docs screenshots man pygobject clean help
.DELETE_ON_ERROR:

run: $(VENV)/.run
	$(BIN)/memifrt demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# The tests whose work is in the test's own process, with every patch of gevent. Without xdist: its workers have threads
# before anything can be patched. Not here: most of the rings' tests, which make no system call and take minutes; and
# tests of programs (most of cli and examples), because a program that a test starts has no patches.
PATCHED := $(addprefix tests/,capture connection control faces memory poll ports stats switch testing threaded throughput traffic \
	test_errors.py test_events.py \
	test_interface.py test_libmemif.py test_options.py test_packets.py test_packets_ipv6.py test_runtime.py test_types.py \
	$(addprefix system/test_,faults_system.py fds.py forks.py linear.py received_fds.py strangers.py) \
	$(addprefix ring/test_,allocations.py derived_views.py pack_into.py vectorized.py) \
	cli/test_dump.py examples/test_asyncio_app.py examples/test_gevent_app.py)
test-patched: $(VENV)/.dev
	$(BIN)/python -m gevent.monkey --module pytest -n 0 $(or $(ARGS),$(PATCHED))

# The rings' tests on rings that AddressSanitizer and UBSan watch over, built in build/asan.
test-asan: $(VENV)/.dev
	PYTHON=$(abspath $(BIN)/python) tests/asan.sh -q -n $(JOBS) $(ARGS)

# The rings' tests and the stress test of threads on a Python without the GIL, which the first run builds. OPERATIONS says
# how many steps each thread takes.
test-freethreaded:
	tests/freethreaded.sh $(ARGS)

# Tests of rings and memory on native modules that are compiled for aarch64, under QEMU.
test-aarch64: $(VENV)/.dev
	PYTHON=$(abspath $(BIN)/python) tests/aarch64.sh $(ARGS)

test-vpp: $(VENV)/.dev
	$(BIN)/python -m pytest -p memifrt.pytest_plugin -n $(JOBS) tests/system/real_vpp.py $(ARGS)

# The tests on a Python that this system need not have, in a chroot of Debian's testing, or of another SUITE. PYTHON=3.15.
test-debian:
	tests/debian-python.sh '$(patsubst python%,%,$(PYTHON))' $(or $(ARGS),-n $(JOBS) --dist worksteal)

# The chroots, which make clean leaves, as it leaves whatever is outside of the checkout.
clean-debian:
	rm -rf --one-file-system "$${XDG_CACHE_HOME:-$$HOME/.cache}"/memifrt/debian-*

# What docs/guides/containers.md says, with podman. Its mounts end with the tests. crun starts nothing where control groups
# of version 1 and 2 are mixed, so those of version 2 are hidden from it there.
test-containers: $(VENV)/.dev
	unshare --mount sh -c '! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "$$@"' sh \
		$(BIN)/python -m pytest -q -n 0 tests/containers.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m tests.prose
	$(BIN)/mypy

wheel: $(VENV)/.dev
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir build/wheel
	mkdir -p dist && mv build/wheel/memifrt-*.tar.gz dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/memifrt-*.whl

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --write $(ARGS)

# ARGS may name what to fuzz: control, ring, or one target; .fuzz keeps corpora, and the inputs that broke something.
# Then Hypothesis looks for new examples. make test runs the same ones each time.
fuzz: $(VENV)/.dev
	$(BIN)/python -m fuzz --seconds $(or $(TIME),60) $(ARGS)
	MEMIFRT_EXPLORE=$(or $(TIMES),3) $(BIN)/python -m pytest -n $(JOBS) -q -m "hypothesis or stateful"

soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.soak $(or $(TIME),600) $(ARGS)

docs: $(VENV)/.docs $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -E -a -b html docs build/docs
	$(BIN)/python -m pytest -q tests/site.py
	@echo build/docs/index.html

# ARGS may name pictures: top, generate, wireshark.
screenshots: $(VENV)/.dev
	$(BIN)/python docs/screenshots.py $(ARGS)

man: $(VENV)/.dev
	mkdir -p build/man
	COLUMNS=72 $(BIN)/argparse-manpage --module memifrt.cli.command_line --function make_man_parser --format single-commands-section \
		--project-name memifrt --manual-title memifrt --description "the memif tools" --output build/man/memifrt.1
	@echo build/man/memifrt.1

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "memifrt needs Python 3.10 or newer; this is " + sys.version.split()[0] + ": run make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python's venv module is missing: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

# By its path, not by a hook: a program in the folder that has the clone would find the clone itself, which is no package.
EDITABLE := --config-settings editable_mode=compat --editable

# pip says what it does here, because compiling the rings takes about a minute.
$(VENV)/.run: $(BUILT) | $(BIN)/python
	@echo "compiling the rings into $(VENV), once: about a minute"
	$(BIN)/python -m pip install --disable-pip-version-check $(EDITABLE) .
	touch $@

# PyGObject has no wheel. It is built where the headers of GLib's introspection and of cairo are: before 3.52 for 1.0.
PYGOBJECT := $(shell pkg-config --exists cairo 2>/dev/null && { pkg-config --exists girepository-2.0 && echo PyGObject || \
	{ pkg-config --exists gobject-introspection-1.0 && echo 'PyGObject<3.52'; }; })

# What pip is to build, for the noxfile.
pygobject:
	@echo '$(PYGOBJECT)'

$(VENV)/.dev: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EDITABLE) '.[dev]'
	$(if $(PYGOBJECT),$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(PYGOBJECT)' || echo "no PyGObject: the tests of GLib's loop are skipped" >&2)
	touch $@ $(VENV)/.run

$(VENV)/.bench: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EDITABLE) '.[bench]'
	touch $@ $(VENV)/.run

$(VENV)/.docs: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EDITABLE) '.[docs]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build dist *.egg-info memifrt/ring/_native.c memifrt/system/_eventfd.c memifrt/memory/_sigbus.c memifrt/poll/_dispatch.c memifrt/_packets.c memifrt/*.so memifrt/*/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz
	find . \( -name __pycache__ -o -name .pytest_cache \) -prune -exec rm -rf {} +

help:
	@sed -n 's/^# make/make/p' $(firstword $(MAKEFILE_LIST))

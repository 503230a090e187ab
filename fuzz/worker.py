"""One target in a process of its own, under atheris or on random bytes.

Owns the engines. What it did goes to standard output as JSON, what broke into files in its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.util
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

from fuzz.leaks import mappings, open_fds, resident_bytes

#: Seconds after which one input hangs.
HANG = 10
#: Seconds of this process's own time that one input may take. A parser that is quadratic takes more.
SLOW = 1.0
#: Inputs that are longer find nothing that shorter ones do not.
_MAX_LENGTH = 400
#: Inputs after which memory that is used once is in use.
_WARM = 2000
#: Random bytes: inputs that are kept, to be changed again.
_POOL = 500

TARGETS = (
    "control-master",
    "control-slave",
    "ring-master-python",
    "ring-master-native",
    "ring-slave-python",
    "ring-slave-native",
    "parsers",
    "capture",
    "packets",
)


class Target(Protocol):
    """What is fuzzed: called with an input, it raises if anything but what should be comes of it."""

    inputs: int

    def __call__(self, data: bytes) -> None: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


def has_atheris() -> bool:
    """Whether inputs can be led by coverage. Atheris has wheels for some Pythons on Linux alone."""
    return importlib.util.find_spec("atheris") is not None


def make(name: str) -> Target:
    """A target by its name; imports what it fuzzes."""
    from memifrt.types import Role

    if name == "parsers":
        from fuzz.parsers import ParserTarget

        return ParserTarget()
    if name == "capture":
        from fuzz.captures import CaptureTarget

        return CaptureTarget()
    if name == "packets":
        from fuzz.packets import PacketTarget

        return PacketTarget()
    kind, role, *ring = name.split("-")
    if kind == "control":
        from fuzz.control import ControlTarget

        return ControlTarget(Role[role.upper()])
    from fuzz.rings import RingTarget

    return RingTarget(Role[role.upper()], *ring)


@contextlib.contextmanager
def strict() -> Iterator[Callable[[], None]]:
    """Warnings are errors, also those of an object that nobody closed; gives what raises the latter."""
    unraised: list[str] = []

    def note(raised: Any) -> None:
        unraised.append(f"{raised.err_msg or 'unraisable'}: {raised.exc_value!r} of {raised.object!r}")

    def check() -> None:
        if unraised:
            found, unraised[:] = "; ".join(unraised), []
            raise AssertionError(found)

    hook, sys.unraisablehook = sys.unraisablehook, note
    logger = logging.getLogger("memifrt")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a hostile peer gives many reasons to warn
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield check
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)


# --- the random engine ----------------------------------------------------------------------------------------------


def random_inputs(seed: int) -> Iterator[bytes]:
    """Inputs without end: sparse, dense, and changed ones of before. The first is empty."""
    numbers = random.Random(seed)
    pool = [b""]
    yield b""
    while True:
        if numbers.random() < 0.5:
            density = numbers.choice((0.05, 0.2, 0.6, 1.0))
            length = numbers.choice((2, 8, 20, 60, 150, _MAX_LENGTH))
            data = bytes(numbers.randrange(256) if numbers.random() < density else 0 for _ in range(length))
        else:
            changed = bytearray(numbers.choice(pool) or b"\0")
            for _ in range(numbers.choice((1, 1, 2, 5))):
                changed[numbers.randrange(len(changed))] = numbers.randrange(256)
            if numbers.random() < 0.3:
                at = numbers.randrange(len(changed))
                changed[at:at] = numbers.choice(pool)[:20]
            data = bytes(changed[:_MAX_LENGTH])
        if len(pool) < _POOL:
            pool.append(data)
        else:
            pool[numbers.randrange(_POOL)] = data
        yield data


# --- the worker -----------------------------------------------------------------------------------------------------


class Worker:
    """Feeds a target, until the time is up or the number of inputs is reached."""

    def __init__(self, target: Target, name: str, seconds: float, inputs: int, check: Callable[[], None]) -> None:
        self.target = target
        self.name = name
        self._inputs = inputs
        self._deadline = time.monotonic() + seconds
        self._check = check
        self._warm_bytes = 0
        #: Seconds that the slowest input took.
        self.slowest = 0.0

    def feed(self, data: bytes) -> bool:
        """One input; whether there is to be another.

        :raises AssertionError: it took too long.
        """
        started = time.process_time()
        self.target(data)
        taken = time.process_time() - started
        self.slowest = max(self.slowest, taken)
        assert taken < SLOW, f"an input of {len(data)} bytes took {taken:.1f} s, at most {SLOW:g} s are right"
        self._check()
        done = self.target.inputs
        if done == _WARM:
            self._warm_bytes = resident_bytes()
        return done < self._inputs if self._inputs else time.monotonic() < self._deadline

    def report(self) -> str:
        """What was done, and what is held after it."""
        self.target.check()
        self._check()
        found: dict[str, Any] = {"target": self.name, "inputs": self.target.inputs}
        for name in ("established", "steps", "violations", "reasons"):
            if hasattr(self.target, name):
                found[name] = getattr(self.target, name)
        grown = resident_bytes() - (self._warm_bytes or resident_bytes())
        found["slowest_ms"] = round(self.slowest * 1000, 1)
        return json.dumps({**found, "fds": len(open_fds()), "mappings": mappings(), "grown_bytes": grown})


def _run_random(worker: Worker, seed: int, folder: Path) -> int:
    # The kernel's default action ends even C code that does not return; before it, the stack is printed.
    faulthandler.register(signal.SIGALRM, chain=True)
    with (folder / f"{worker.name}-last").open("wb", buffering=0) as last:
        for data in random_inputs(seed):
            os.pwrite(last.fileno(), data, 0)  # before it can kill us
            os.truncate(last.fileno(), len(data))
            signal.alarm(HANG)
            if not worker.feed(data):
                break
        signal.alarm(0)
        print(worker.report())
    return 0


def _run_atheris(worker: Worker, seed: int, folder: Path) -> NoReturn:
    import atheris

    corpus = folder / worker.name
    corpus.mkdir(exist_ok=True)

    def one(data: bytes) -> None:
        if worker.feed(data):
            return
        try:
            print(worker.report(), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # libFuzzer knows no other end

    length = _MAX_LENGTH // 2 if worker.name.startswith("control") else _MAX_LENGTH
    options = [f"-artifact_prefix={folder}/{worker.name}-", f"-timeout={HANG}", f"-max_len={length}"]
    options.append("-len_control=10")  # long conversations soon, and not after hours
    atheris.Setup([sys.argv[0], str(corpus), f"-seed={seed}", *options], one)
    atheris.Fuzz()
    raise AssertionError("atheris has come to an end by itself")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz.worker", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--engine", choices=("atheris", "random"), default="random")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inputs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"))
    parser.add_argument("--replay", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    faulthandler.enable()
    with strict() as check:
        with contextlib.ExitStack() as stack:
            if arguments.engine == "atheris" and not arguments.replay:
                import atheris

                stack.enter_context(atheris.instrument_imports(include=["memifrt"]))
            target = make(arguments.target)
        worker = Worker(target, arguments.target, arguments.seconds, arguments.inputs, check)
        for path in arguments.replay:
            worker.feed(path.read_bytes())
        if arguments.replay:
            print(worker.report())
            return 0
        arguments.folder.mkdir(parents=True, exist_ok=True)
        seed = arguments.seed or random.SystemRandom().randrange(1, 1 << 31)
        if arguments.engine == "atheris":
            _run_atheris(worker, seed, arguments.folder)
        return _run_random(worker, seed, arguments.folder)


if __name__ == "__main__":
    sys.exit(main())

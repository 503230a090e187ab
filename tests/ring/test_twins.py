"""The two implementations have the same parts, names and parameters, so that a reader of one can find the other.

The compiled classes hide their attributes and inner methods from Python: these are read from the source.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import memifrt.ring
from memifrt.ring import load, protocol
from memifrt.ring.reference import burst, receive, ring, send

FOLDER = Path(memifrt.ring.__file__).parent
# Of the tests, not of the package, which may be installed elsewhere.
PROJECT = Path(__file__).parents[2]
PARTS = ["descriptor", "ring", "burst", "receive", "send", "vectors"]
#: The compiled queues are beside the compiled rings, the readable ones in a folder of their own.
QUEUE = "queue"

#: What only the reference has, and why.
ONLY_REFERENCE = {
    # Descriptors are tuples here, and views need an exporter: see RingBurst.whole.
    "descriptor": {"only_next", "array_type", "Regions.export", "Regions.types"},
    # Struct formats instead of a C struct; the compiled checks are in OwnBuffers.
    "ring": {"RingBase.descriptors", "RingBase.header", "check_buffers", "slave_buffers"},
    # Packets are found by a generator; a Protocol stands where Cython needs none.
    "burst": {
        "BurstRing",
        "BurstRing.buffer_bounds",
        "BurstRing.burst_ended",
        "BurstRing.ended_error",
        "BurstRing.is_tx",
        "RingBurst.exporters",
        "RingBurst.joined",
        "RingBurst.packet_bounds",
        "RingBurst.whole",
        "RingBurst.wholes",
    },
    "receive": set(),
    # Free buffers come from a generator; what the compiled base class has as one method for Python and one for C.
    "send": {
        "MasterTxRing.in_flight",
        "MasterTxRing.rooms",
        "SlaveTxRing.forward",
        "SlaveTxRing.in_flight",
        "SlaveTxRing.rooms",
        "TxRingBase.fill",
        "TxRingBase.rooms",
        "noting_lengths",
    },
    # memoryview does what the compiled classes do.
    "vectors": {"check_lengths", "longest_length", "matrix_rows", "packet_bytes", "row_to_send"},
    # A call that takes packets is handed to a method, and a flag says that forward_from runs.
    "queue": {"Queue.connected_ring", "Queue.live", "Queue.looping", "RxQueue.receive", "TxQueue.relay"},
}
#: What only the compiled rings have, and why.
ONLY_NATIVE = {
    "descriptor": {"Regions.held"},
    "ring": {
        "OwnBuffers",
        "OwnBuffers.held",
        "OwnBuffers.holding",
        "OwnBuffers.offsets",
        "OwnBuffers.region",
        "OwnBuffers.size",
        "RingBase.busy",
        "RingBase.is_tx",
        "RingBase.require_idle",
        "RingBase.set_interrupts",
        "RingBase.ring",
        "RingBase.violated",
    },
    # Memory and views by hand; packets are found by functions, and by an iterator instead of a generator; what is done
    # while the ring is locked.
    "burst": {
        "Packet.of",
        "Packets",
        "Packets.burst",
        "Packets.next",
        "RingBurst.count",
        "RingBurst.end",
        "RingBurst.exporter",
        "RingBurst.exporting",
        "RingBurst.exports",
        "RingBurst.fill",
        "RingBurst.pack_entries",
        "RingBurst.pack",
        "RingBurst.write_flags",
        "joined",
        "new_burst",
        "new_packet",
        "packet_end",
        "whole_packet_end",
    },
    # Ways without a burst; what raises where the GIL is not held; what C calls.
    "receive": {
        "MasterRxRing.too_long",
        "RxRingBase.consume",
        "RxRingBase.copy_rows",
        "RxRingBase.recv_buffers",
        "RxRingBase.recv_into_from_burst",
        "RxRingBase.recv_packets",
        "RxRingBase.recv_rows",
        "RxRingBase.recv_rows_from",
        "RxRingBase.scratch",
        "RxRingBase.take_burst",
        "RxRingBase.take_entries",
        "RxRingBase.waiting",
        "SlaveRxRing.outside_its_buffer",
        "check_limit",
    },
    # Rooms are staged in memory that is kept, and there is a way without a burst; what C calls.
    "send": {
        "MasterTxRing.unreturned",
        "SlaveTxRing.enqueue_own",
        "SlaveTxRing.forward_own",
        "SlaveTxRing.relay_entries",
        "SlaveTxRing.unreturned",
        "TxRingBase.allocate",
        "TxRingBase.forward_burst",
        "TxRingBase.forward_own",
        "TxRingBase.free_room",
        "TxRingBase.relay_entries",
        "TxRingBase.relay_packets",
        "TxRingBase.send_packets",
        "TxRingBase.send_rows",
        "TxRingBase.transmit_burst",
        "TxRingBase.unreturned",
        "MasterTxRing.check_room",
        "MasterTxRing.prepare",
        "SlaveTxRing.prepare",
        "TxRingBase.buffers_are_ours",
        "TxRingBase.check_room",
        "TxRingBase.copy_entries",
        "TxRingBase.expected",
        "TxRingBase.fresh_room",
        "TxRingBase.gather",
        "TxRingBase.notes_lengths",
        "TxRingBase.posted_lengths",
        "TxRingBase.prefetch_room",
        "TxRingBase.prepare",
        "TxRingBase.put_buffer",
        "TxRingBase.put_rows",
        "TxRingBase.relay_as_burst",
        "TxRingBase.rooms_staged",
        "TxRingBase.staged",
    },
    "vectors": {
        "Lengths",
        "Lengths.at",
        "Lengths.count",
        "Lengths.get",
        "Lengths.held",
        "Lengths.holding",
        "Lengths.longest",
        "Lengths.set",
        "Lengths.shown",
        "Lengths.signed",
        "Matrix",
        "Matrix.held",
        "Matrix.holding",
        "Matrix.row",
        "Matrix.rows",
        "Matrix.width",
        "clamped",
    },
}
ONLY_NATIVE["queue"] = {
    # The loop of forward_from runs without the GIL, and keeps others away by taking the ring out of the queue.
    *("Loop", "Queue.after_loop", "Queue.await_end", "Queue.begin_loop", "Queue.end_loop", "Queue.ending"),
    *("Queue.runner", "Queue.running", "TxQueue.run", "TxQueue.watch_leftovers"),
    *(
        f"Loop.{name}"
        for name in [
            "adaptive",
            "duplicate",
            "end",
            "event",
            "flag",
            "held",
            "holding",
            "is_main",
            "is_over",
            "kick",
            "limit",
            "looked",
        ]
    ),
    *(f"Loop.{name}" for name in ["packets", "prepare", "signals_seen", "sleep", "stop"]),
    # System calls without Python, and each receiving call written out around its own way to take packets.
    *("Queue.calls", "Queue.notify", "Queue.read_kicks", "RxQueue.after", "RxQueue.before", "RxQueue.live"),
    "RxQueue.mode_change",  # a property, so that it is locked
    *("RxQueue.mode_now", "RxQueue.raise_failure", "RxQueue.relay_to", "TxQueue.live"),
}
#: Parameters of the reference alone: the generator of rooms, and lists that know their length.
REFERENCE_PARAMETERS = {
    "TxRingBase.reserve": {"rooms"},
    "TxRingBase.put": {"rooms"},
    "TxRingBase.publish_staged": {"entries"},
}

Names = dict[str, "list[str] | None"]


def _reference_names(source: str) -> Names:
    """Functions, classes, methods with their parameters, and attributes, without leading underscores."""
    names: Names = {}

    def add(node: ast.stmt, owner: str) -> None:
        match node:
            case ast.FunctionDef(name) if not name.endswith("__"):
                arguments = [argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]]
                names[owner + name.lstrip("_")] = arguments
            case ast.FunctionDef("__init__"):
                for part in ast.walk(node):
                    match part:
                        case ast.Attribute(ast.Name("self"), name, ast.Store()):
                            names[owner + name.lstrip("_")] = None
            case ast.ClassDef(name):
                names[name.lstrip("_")] = None
                for inner in node.body:
                    add(inner, f"{name.lstrip('_')}.")
            case ast.Assign([ast.Name("__slots__")], ast.Tuple(slots)):
                for slot in slots:
                    assert isinstance(slot, ast.Constant)
                    names[owner + str(slot.value).lstrip("_")] = None

    for statement in ast.parse(source).body:
        add(statement, "")
    return names


_CLASS = re.compile(r"cdef class (\w+)")
_FUNCTION = re.compile(r"( {4})?(?:cdef|def) (?:[\w *]*?[ *])?(\w+)\(\s*([^)]*)\).*:$", re.MULTILINE)
_ATTRIBUTE = re.compile(r" {4}cdef (?:readonly )?[\w ]*?\w+[ *]+((?:\w+, )*\w+)(?:  #.*)?$")


def _native_names(source: str) -> Names:
    """The same of a part of the compiled rings."""
    names: Names = {}
    for block in re.split(r"^(?=cdef class )", source, flags=re.MULTILINE):
        # A class ends where the next line starts that is not indented.
        body, rest = re.fullmatch(r"(cdef class .*?\n(?=[^\s#])|)(.*)", block + "\n\\", re.DOTALL).groups()  # type: ignore[union-attr]
        if body:
            owner = _CLASS.match(body)
            assert owner is not None
            names[owner[1]] = None
            before_methods = re.split(r"^ {4}(?:def|@|cdef [^\n]*\()", body, maxsplit=1, flags=re.MULTILINE)[0]
            for line in before_methods.splitlines():
                if attribute := _ATTRIBUTE.match(line):
                    names.update({f"{owner[1]}.{name}": None for name in attribute[1].split(", ")})
        for text, prefix in ((body, f"{owner[1]}." if body and owner else ""), (rest, "")):
            for indent, name, arguments in _FUNCTION.findall(text):
                if not name.endswith("__") and bool(indent) == bool(prefix):
                    names[prefix + name] = _parameters(arguments)
    return names


def _parameters(text: str) -> list[str]:
    parts = [part.partition("=")[0].strip() for part in text.split(",")]
    return [re.split(r"[\s*]+", part)[-1] for part in parts if part and part != "*"]


def _sources(part: str) -> tuple[Names, Names]:
    path = FOLDER.parent / "queue" / "reference.py" if part == QUEUE else FOLDER / "reference" / f"{part}.py"
    reference = _reference_names(path.read_text())
    native = _native_names((FOLDER / f"_native_{part}.pxi").read_text())
    for names in (reference, native):
        for owner in ("RingBase", "Queue"):
            names.pop(f"{owner}.__weakref__", None)  # Python's own
            names.pop(f"{owner}.weakref__", None)
    return reference, native


def test_names_are_found_in_the_source() -> None:
    source = """
cdef enum:
    SOME = 1

@cython.final
cdef class Thing(Other):
    # A comment.
    cdef uint16_t first, second
    cdef uint8_t *third  # why
    cdef readonly bint fourth

    def __cinit__(self):
        cdef int local
    def public(self, count=None, *, bint chain=True):
        pass
    cdef inline uint8_t *inner(self, const entry *into, packet) noexcept:
        return NULL
    cdef void wide(
        self, int64_t *start
    ) noexcept:
        pass


cdef int function(Thing thing not_none, int count) except -1:
    return 0
"""
    assert _native_names(source) == {
        "Thing": None,
        "Thing.first": None,
        "Thing.second": None,
        "Thing.third": None,
        "Thing.fourth": None,
        "Thing.public": ["self", "count", "chain"],
        "Thing.inner": ["self", "into", "packet"],
        "Thing.wide": ["self", "start"],
        "function": ["not_none", "count"],
    }


def test_every_part_has_a_twin() -> None:
    modules = {path.stem for path in (FOLDER / "reference").glob("*.py")} - {"__init__"}
    included = re.findall(r'^include "_native_(\w+)\.pxi"$', (FOLDER / "_native.pyx").read_text(), re.MULTILINE)
    assert included == [*PARTS, QUEUE]
    assert modules == {*PARTS} == {path.stem.removeprefix("_native_") for path in FOLDER.glob("*.pxi")} - {QUEUE}


@pytest.mark.parametrize("part", [*PARTS, QUEUE])
def test_twins_have_the_same_names(part: str) -> None:
    reference, native = _sources(part)
    assert reference.keys() - native.keys() == ONLY_REFERENCE[part]
    assert native.keys() - reference.keys() == ONLY_NATIVE[part]


@pytest.mark.parametrize("part", [*PARTS, QUEUE])
def test_twins_take_the_same_parameters_in_the_same_order(part: str) -> None:
    """C needs more of them: the length of an array, memory for a result."""
    reference, native = _sources(part)
    for name in reference.keys() & native.keys():
        ours, theirs = reference[name] or [], native[name] or []
        shared = [parameter for parameter in ours if parameter not in REFERENCE_PARAMETERS.get(name, ())]
        assert [parameter for parameter in theirs if parameter in shared] == shared, name


def _parameters_of(function: Any) -> list[tuple[str, object, object]]:
    return [(item.name, item.kind, item.default) for item in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(
    ("contract", "classes"),
    [
        (protocol.RxRing, ["MasterRxRing", "SlaveRxRing"]),
        (protocol.TxRing, ["MasterTxRing", "SlaveTxRing"]),
        (protocol.RingImplementation, [""]),
    ],
)
@pytest.mark.parametrize("implementation", ["native", "python"])
def test_public_methods_have_the_signatures_of_the_protocol(
    implementation: str, contract: type, classes: list[str]
) -> None:
    module = load(implementation)
    for name, method in inspect.getmembers(contract, inspect.isfunction):
        for owner in classes:
            found = getattr(getattr(module, owner) if owner else module, name, None)
            if name.startswith("_"):
                continue
            assert found is not None, name
            expected = _parameters_of(method)
            assert _parameters_of(found) == (expected if owner else expected[1:]), f"{owner}.{name}"


@pytest.mark.parametrize("implementation", ["native", "python"])
def test_a_burst_has_the_signatures_of_the_protocol(implementation: str) -> None:
    kind = vars(load(implementation))["RingBurst"] if implementation == "native" else burst.RingBurst
    for name, method in inspect.getmembers(protocol.Burst, inspect.isfunction):
        if not name.startswith("_"):
            assert _parameters_of(getattr(kind, name)) == _parameters_of(method), name


@pytest.mark.parametrize(
    "contract",
    [
        protocol.Burst,
        protocol.Ring,
        protocol.RxRing,
        protocol.TxRing,
        protocol.RingImplementation,
        burst.BurstRing,
        ring.RingBase,
        receive.RxRingBase,
        send.TxRingBase,
    ],
)
def test_a_method_that_is_not_overridden_raises_instead_of_doing_nothing(contract: type) -> None:
    tree = ast.parse(inspect.getsource(contract))
    silent = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and all(isinstance(statement, ast.Expr | ast.Pass) for statement in node.body)
        and not _calls(node)
    ]
    assert silent == []


def _calls(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(function))


def test_compiled_methods_without_a_body_raise() -> None:
    for path in FOLDER.glob("_native_*.pxi"):
        text = re.sub(r'""".*?"""', "pass", path.read_text(), flags=re.DOTALL)
        assert re.findall(r"^ {4}cdef [^\n]*\):?[^\n]*:\n {8}pass\n(?! {8})", text, re.MULTILINE) == [], path.name


def test_labels_of_memory_order_are_on_the_page_and_on_both_sides() -> None:
    """docs/memory-order.md names each ordered access, and the code cites it where it happens."""
    page = (PROJECT / "docs" / "memory-order.md").read_text()
    labels = set(re.findall(r"^\| ([ABFR]\d) \|", page, re.MULTILINE))
    reference = "".join((FOLDER / "reference" / f"{part}.py").read_text() for part in PARTS)
    native = "".join((FOLDER / f"_native_{part}.pxi").read_text() for part in PARTS)
    for source in (reference, native):
        assert set(re.findall(r"#.*\b([ABFR]\d)\b", source)) == labels

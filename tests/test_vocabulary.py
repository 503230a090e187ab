"""One vocabulary: the same thing has the same name in constructors, faces, fixtures, commands and endpoint strings."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import memifrt.asyncio
import memifrt.libmemif
import memifrt.runtime
from memifrt import Interface, MemifError, Runtime, RxMode
from memifrt.cli.arguments import Parser, add_peer_arguments, interface_config
from memifrt.cli.endpoint import parse_memif_endpoint
from memifrt.options import TEXT_OPTIONS, InterfaceConfig, InterfaceOptions, RuntimeOptions
from memifrt.ports.port import MemifPort as BridgePort
from memifrt.pytest_plugin import Memif, MemifPort, MemifResponder
from memifrt.runtime import InterfaceArguments
from tests.lib.support import DEADLINE, Pair, wait_until

MODULES = [
    "memifrt",
    "memifrt.asyncio",
    "memifrt.gevent",
    "memifrt.trio",
    "memifrt.scapy",
    "memifrt.pytest_plugin",
    "memifrt.threaded.runtime_thread",
    "memifrt.ports.port",
    "memifrt.ports.tap",
    "memifrt.ports.packet_socket",
    "memifrt.options",
]
#: Names that an argument must not have, each with the name that it must have.
WRONG = {
    "queue": "qid",
    "queue_id": "qid",
    "queue_index": "qid",
    "max": "limit",
    "maximum": "limit",
    "max_packets": "limit",
    "n": "limit",
    "num": "limit",
    "count": "limit",
    "seconds": "timeout",
    "secs": "timeout",
    "deadline": "timeout",
    "wait_time": "timeout",
    "num_queues": "queues",
    "log2_size": "ring_size",
    "ringsize": "ring_size",
    "slots": "ring_size",
    "bufsize": "buffer_size",
    "buf_size": "buffer_size",
    "receive_mode": "rx_mode",
    "rxmode": "rx_mode",
}
#: Where ``count`` is no limit but what the caller asks for, or a number that something has.
EXACT = {
    "Burst.advance": "bytes to cut off",
    "LossWarning.lost": "packets that were lost",
    "MemifPort.recv": "exactly so many packets, or a MemifTimeout",
    "RxQueue.refill": "libmemif's word: buffers to give back",
    "TxQueue.alloc": "libmemif's word: buffers to reserve",
    "TxQueue.enqueue": "libmemif's word: buffers to swap",
    "TxQueue.transmit": "libmemif's word: buffers to send",
}
#: The options that are numbers of queues, slots and bytes, or the receive mode.
RING_OPTIONS = (
    "queues",
    "num_s2m_rings",
    "num_m2s_rings",
    "ring_size",
    "log2_ring_size",
    "buffer_size",
    "rx_mode",
)


@pytest.fixture
def memif() -> Iterator[Memif]:
    """What the fixture of this name gives to others."""
    with contextlib.closing(Memif(DEADLINE)) as made:
        yield made


def module(name: str) -> ModuleType:
    """A module of the package; the test is skipped where the library that the module is for is not installed."""
    library = name.rpartition(".")[2]
    if name in ("memifrt.gevent", "memifrt.trio", "memifrt.scapy"):
        pytest.importorskip(library, reason=f"needs {library}: pip install memifrt[{library}]")
    return importlib.import_module(name)


def public_functions(of: ModuleType) -> Iterator[Callable[..., object]]:
    """The public functions, constructors and methods of a module, inherited ones too."""
    for name, found in vars(of).items():
        if name.startswith("_") or not getattr(found, "__module__", "").startswith("memifrt"):
            continue
        if inspect.isfunction(found):
            yield found
        elif inspect.isclass(found):
            for member, function in inspect.getmembers(found, inspect.isfunction):
                if (member == "__init__" or not member.startswith("_")) and function.__module__.startswith("memifrt"):
                    yield function


@pytest.mark.parametrize("name", MODULES)
def test_an_argument_has_the_name_that_it_has_everywhere(name: str) -> None:
    wrong = [
        f"{function.__qualname__}({argument}): call it {WRONG[argument]}"
        for function in public_functions(module(name))
        for argument in inspect.signature(function).parameters
        if argument in WRONG and not (argument == "count" and function.__qualname__ in EXACT)
    ]
    assert wrong == []


def holders() -> list[Any]:
    """What holds an interface: a module, and the name of a class in it."""
    return [
        ("memifrt", "Interface"),
        ("memifrt.asyncio", "AsyncioInterface"),
        ("memifrt.gevent", "GeventInterface"),
        ("memifrt.trio", "TrioInterface"),
        ("memifrt.scapy", "MemifSocket"),
        ("memifrt.pytest_plugin", "MemifPort"),
        ("memifrt.pytest_plugin", "MemifResponder"),
        ("memifrt.ports.port", "MemifPort"),
        ("memifrt.libmemif", "MemifConnHandle"),
    ]


@pytest.mark.parametrize(("where", "name"), holders())
def test_what_holds_an_interface_has_connected_counters_and_close(where: str, name: str) -> None:
    holder = getattr(module(where), name)
    assert isinstance(inspect.getattr_static(holder, "connected"), property)
    assert isinstance(inspect.getattr_static(holder, "counters"), property)
    assert [*inspect.signature(holder.close).parameters] == ["self"]


@pytest.mark.parametrize(("where", "name"), [holder for holder in holders() if "scapy" not in holder[0]])
def test_connected_says_the_same_everywhere(where: str, name: str) -> None:
    assert getattr(module(where), name).connected.__doc__.startswith("Whether there is a peer")


def test_connected_is_true_from_on_connect_on_and_false_in_on_disconnect(make_pair: Callable[..., Pair]) -> None:
    seen: list[bool] = []

    def look(interface: Interface, *reason: object) -> None:
        seen.append(interface.connected)

    pair = make_pair(slave_on_connect=look, slave_on_disconnect=look)
    pair.slave.close()
    assert seen == [True, False]
    pair.slave.close()  # a second call is harmless
    assert pair.slave.deleted


def test_counters_outlive_the_connection(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    assert pair.slave.tx_queues[0].send([b"one", b"two"]) == 2
    pair.slave.close()
    assert pair.slave.counters.tx.packets == 2
    assert pair.slave.counters.rx.packets == 0


# --- options --------------------------------------------------------------------------------------------------------


def options_of(function: Callable[..., object]) -> set[str]:
    """The names that ``**options`` of a function stands for."""
    (annotation,) = [
        parameter.annotation
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.VAR_KEYWORD
    ]
    (name,) = re.findall(r"Unpack\[(\w+)\]", annotation)
    return {*vars(inspect.getmodule(inspect.unwrap(function)))[name].__annotations__}


@pytest.mark.parametrize("name", ["memifrt.asyncio", "memifrt.gevent", "memifrt.trio"])
def test_open_interface_takes_every_option_of_an_interface_and_of_a_runtime(name: str) -> None:
    taken = options_of(module(name).open_interface)
    assert taken == {*InterfaceArguments.__annotations__, *RuntimeOptions.__annotations__, "app_name"}
    assert options_of(module(name).open_runtime) == {*RuntimeOptions.__annotations__}


def test_the_list_of_a_runtime_s_options_is_that_of_its_constructor() -> None:
    own = {*inspect.signature(Runtime.__init__).parameters} - {"self", "app_name", "control_fd_update"}
    assert own == {*RuntimeOptions.__annotations__}


@pytest.mark.parametrize("function", [Runtime.create_interface, InterfaceConfig.of, Memif.port, Memif.scapy])
def test_what_makes_an_interface_takes_every_option(function: Callable[..., object]) -> None:
    assert options_of(function) >= {*InterfaceOptions.__annotations__}


def test_a_memif_socket_takes_every_option() -> None:
    assert options_of(module("memifrt.scapy").MemifSocket.__init__) == {*InterfaceOptions.__annotations__}


def test_an_open_interface_gives_its_runtime_the_options(socket_name: str) -> None:
    import asyncio

    async def main() -> None:
        async with memifrt.asyncio.open_interface(
            socket=socket_name, id=3, app_name="us", reconnect_interval=0.5, prometheus="127.0.0.1:0", max_half_open=1
        ) as interface:
            runtime = interface.runtime
            assert (runtime.app_name, runtime.reconnect_interval, interface.id) == ("us", 0.5, 3)
            assert runtime.metrics_url.startswith("http://127.0.0.1:")
        with pytest.raises(MemifError, match="max_half_open is 0"):
            async with memifrt.asyncio.open_interface(socket=socket_name, max_half_open=0):
                pass

    asyncio.run(main())


def parsed(*arguments: str) -> InterfaceConfig:
    """The options of an interface on a command line."""
    parser = Parser()
    add_peer_arguments(parser, "interrupt")
    given: argparse.Namespace = parser.parse_args(arguments)
    return interface_config(given)


def test_commands_and_endpoint_strings_have_the_options_under_their_names() -> None:
    assert {*RING_OPTIONS} <= {*TEXT_OPTIONS}
    values = {"num_s2m_rings": 2, "num_m2s_rings": 3, "log2_ring_size": 5, "buffer_size": 256, "rx_mode": "polling"}
    typed = [f"{name.replace('_', '-')}={value}" for name, value in values.items()]
    for config in (
        parsed(*(f"--{each}" for each in typed)),
        parse_memif_endpoint(f"memif:@lab,{','.join(typed)}").config,
    ):
        assert (config.num_s2m_rings, config.num_m2s_rings) == (2, 3)
        assert (config.ring_size, config.buffer_size, config.rx_mode) == (32, 256, RxMode.POLLING)


def test_a_command_line_without_options_has_the_defaults() -> None:
    config = parsed()
    assert config == InterfaceConfig(name="memif0")
    assert parsed("--queues=4", "--ring-size=64").ring_size == 64


@pytest.mark.parametrize("other", ["num-s2m-rings=2", "num-m2s-rings=2"])
def test_queues_and_a_number_for_one_direction_contradict_each_other(other: str) -> None:
    with pytest.raises(MemifError, match="an interface takes one of the two"):
        parsed("--queues=3", f"--{other}")
    with pytest.raises(MemifError, match="an interface takes one of the two"):
        parse_memif_endpoint(f"memif:@lab,queues=3,{other}")


# --- old names ------------------------------------------------------------------------------------------------------


def warning_of(call: Callable[[], object]) -> tuple[str, object]:
    """What a call warns of, at a line of this file, and what it returns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert warning.filename == __file__  # the caller's line, not the library's
    return str(warning.message), result


def test_total_counters_is_now_counters(runtime: Runtime, socket_name: str) -> None:
    interface = runtime.create_interface(socket=socket_name)
    message, counters = warning_of(lambda: interface.total_counters()[:])
    assert message == "Interface.total_counters() is now Interface.counters"
    assert counters == interface.counters


def test_mode_of_a_receive_queue_is_now_rx_mode(make_pair: Callable[..., Pair]) -> None:
    queue = make_pair().slave.rx_queues[0]
    message, mode = warning_of(lambda: queue.mode)
    assert message == "RxQueue.mode is now RxQueue.rx_mode"
    assert mode is queue.rx_mode is RxMode.INTERRUPT


def test_set_mode_is_now_set_rx_mode(make_pair: Callable[..., Pair]) -> None:
    queue = make_pair().slave.rx_queues[0]
    message, _ = warning_of(lambda: queue.set_mode("polling"))
    assert message == "RxQueue.set_mode() is now RxQueue.set_rx_mode()"
    assert queue.rx_mode is RxMode.POLLING


def test_seconds_of_set_reconnect_interval_is_now_reconnect_interval(runtime: Runtime) -> None:
    message, _ = warning_of(lambda: runtime.set_reconnect_interval(seconds=0.5))  # type: ignore[call-arg]
    assert message == "the argument seconds of Runtime.set_reconnect_interval() is now reconnect_interval"
    assert runtime.reconnect_interval == 0.5
    with pytest.raises(TypeError, match="reconnect_interval and seconds, which is its old name"):
        runtime.set_reconnect_interval(reconnect_interval=1, seconds=1)  # type: ignore[call-arg]


def test_queue_of_a_port_s_send_is_now_qid(memif: Memif) -> None:
    master, slave = memif.pair(queues=2)
    message, sent = warning_of(lambda: slave.send([b"x"], queue=1))  # type: ignore[call-arg]
    assert message == "the argument queue of MemifPort.send() is now qid"
    assert (sent, master.recv(), slave.interface.tx_queues[1].counters.packets) == (1, [b"x"], 1)


def test_seconds_of_collect_is_now_timeout(memif: Memif) -> None:
    _, slave = memif.pair()
    message, packets = warning_of(lambda: slave.collect(seconds=0.001))  # type: ignore[call-arg]
    assert message == "the argument seconds of MemifPort.collect() is now timeout"
    assert packets == []


class Packet:
    """A packet that knows its bytes, and that one can iterate over, as scapy's are."""

    def __bytes__(self) -> bytes:
        return b"packet"

    def __iter__(self) -> Iterator[Packet]:
        yield self


@pytest.mark.parametrize(
    ("packets", "received"),
    [
        ((b"one",), [b"one"]),
        ((b"one", bytearray(b"two")), [b"one", b"two"]),
        ((memoryview(b"one"),), [b"one"]),
        ((Packet(),), [b"packet"]),
        ((Packet(), b"two"), [b"packet", b"two"]),
    ],
)
def test_packets_as_arguments_of_send_are_now_a_list(
    memif: Memif, packets: tuple[Any, ...], received: list[bytes]
) -> None:
    master, slave = memif.pair()
    message, sent = warning_of(lambda: slave.send(*packets))
    assert message == "send(packet, ...) of a MemifPort is now send([packet, ...])"
    assert sent == len(received)
    assert master.recv(len(received)) == received


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_a_port_sends_what_every_send_takes(memif: Memif, kind: Callable[[list[bytes]], Any]) -> None:
    master, slave = memif.pair()
    assert slave.send(kind([b"one", b"two"])) == 2
    assert master.recv(2) == [b"one", b"two"]
    assert slave.send([]) == slave.send() == 0
    with pytest.raises(MemifError, match="a list of packets"):
        slave.send("one")  # type: ignore[arg-type]


def test_positional_options_of_a_memif_socket_are_now_named(socket_name: str) -> None:
    memif_socket = module("memifrt.scapy").MemifSocket
    message, made = warning_of(lambda: memif_socket(socket_name, 3, timeout=0))
    assert message == "MemifSocket takes its options by name: id=…, role=…, mode=…, secret=…"
    with made:  # type: ignore[attr-defined]
        assert made.interface.id == 3  # type: ignore[attr-defined]


def test_a_port_of_a_bridge_sends_as_everything_does(runtime: Runtime, peer_runtime: Runtime, socket_name: str) -> None:
    port = BridgePort(runtime, parse_memif_endpoint(f"memif:{socket_name},role=master"))
    peer = peer_runtime.create_interface(socket=socket_name)
    wait_until(lambda: port.connected and peer.connected, runtime, peer_runtime)
    assert port.send([b"one", b"two"]) == 2
    assert peer.rx_queues[0].recv() == [b"one", b"two"]
    assert port.counters.tx.packets == 2
    port.close()
    assert not port.connected


def test_a_fixture_s_port_and_responder_are_interfaces_too(memif: Memif) -> None:
    responder = memif.responder()
    port = memif.port(socket=responder.socket, wait=True)
    assert isinstance(port, MemifPort)
    assert isinstance(responder, MemifResponder)
    responder.port.wait_connected()
    assert responder.connected is port.connected is True
    assert responder.counters.tx.packets == 0
    responder.close()
    port.wait_disconnected()
    assert (responder.connected, port.connected) == (False, False)

"""Sockets in another network namespace, under VPP's names for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from memifrt import ConfigError, ErrorCode, MemifOSError, Runtime
from memifrt.cli.endpoint import parse_endpoint
from memifrt.control.address import Address
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.system.netns import call_in_namespace, namespace_path
from tests.lib import namespaces
from tests.lib.support import wait_until


@pytest.mark.parametrize(
    ("text", "path", "netns"),
    [
        ("abstract:lab,netns_name=/run/netns/red", "@lab", "/run/netns/red"),
        ("@lab,netns_name=red", "@lab", "red"),
        ("/run/vpp/memif.sock,netns_name=pid:1", "/run/vpp/memif.sock", "pid:1"),
        ("@lab", "@lab", ""),
    ],
)
def test_a_name_of_vpp_s_has_a_path_and_a_namespace(text: str, path: str, netns: str) -> None:
    address = Address.parse(text)
    assert (address.path, address.netns) == (path, netns)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@lab,netns_name=", "netns_name= needs the name or the path of a network namespace"),
        (",netns_name=red", "must be a path or @name"),
        ("@lab,netns_name=a\0b", "NUL byte"),
    ],
)
def test_what_is_no_such_name_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Address.parse(text)


@pytest.mark.parametrize(("name", "path"), [("red", "/run/netns/red"), ("/a/b", "/a/b"), ("pid:7", "/proc/7/ns/net")])
def test_a_namespace_is_a_name_a_path_or_a_process(name: str, path: str) -> None:
    assert namespace_path(name) == path


@pytest.mark.parametrize("text", ["memif:@lab,netns=red,role=master", "memif:@lab,role=master,netns_name=red"])
def test_an_endpoint_has_a_namespace(text: str) -> None:
    endpoint = parse_endpoint(text)
    assert isinstance(endpoint, MemifEndpoint)
    assert endpoint.socket == "@lab,netns_name=red"


@pytest.mark.parametrize("role", ["master", "slave"])
def test_a_namespace_that_is_not_there_is_named(runtime: Runtime, role: Any) -> None:
    name = f"memifrt-none-{os.getpid()}"
    if role == "master":
        with pytest.raises(MemifOSError, match=f"cannot enter network namespace {name} .*No such file") as caught:
            runtime.create_interface(socket=f"@lab,netns_name={name}", role=role)
        error: object = caught.value
    else:
        error = runtime.create_interface(socket=f"@lab,netns_name={name}", role=role).last_error
    assert isinstance(error, MemifOSError)
    assert (error.code, error.filename) == (ErrorCode.NO_FILE, f"/run/netns/{name}")


@pytest.fixture
def netns() -> Iterator[str]:
    if reason := namespaces.missing():
        pytest.skip(reason)
    with namespaces.namespaces(1) as (made,):
        yield made.name


def test_a_socket_is_made_in_its_namespace_and_nothing_else_moves(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, netns: str
) -> None:
    home = os.stat("/proc/thread-self/ns/net")
    inside = f"abstract:{socket_name[1:]},netns_name={netns}"
    master = runtime.create_interface(socket=inside, role="master")
    slave = peer_runtime.create_interface(socket=inside)
    stranger = peer_runtime.create_interface(socket=socket_name)
    wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
    assert master.socket.path == f"{socket_name},netns_name={netns}"
    assert stranger.last_error is not None
    assert stranger.last_error.code is ErrorCode.CONNREFUSED  # nobody has this name in our namespace
    assert os.path.samestat(os.stat("/proc/thread-self/ns/net"), home)


def test_what_a_function_raises_in_a_namespace_comes_out(netns: str) -> None:
    with pytest.raises(ZeroDivisionError):
        call_in_namespace(netns, lambda: 1 // 0)

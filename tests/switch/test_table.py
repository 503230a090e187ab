"""The forwarding table: learning, ageing by a clock of the test's own, and its limits."""

from __future__ import annotations

from memifrt.switch.storm import TokenBucket
from memifrt.switch.table import NOWHERE, ForwardingTable


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def ports(table: ForwardingTable) -> dict[bytes, int]:
    return {entry.mac: entry.port for entry in table}


def test_an_address_is_found_where_it_was_seen_last() -> None:
    table = ForwardingTable()
    first = table.learn(0, mac(1), 3, 0.0)
    assert table.lookup(0, mac(1), 1.0) is first
    assert table.lookup(0, mac(2), 1.0) is None
    second = table.learn(0, mac(1), 4, 2.0)
    assert table.lookup(0, mac(1), 2.0) is second
    assert (first.port, second.port) == (NOWHERE, 4), "a decision that holds the old entry sees that it has moved"
    assert (table.learned, table.moved, len(table)) == (1, 1, 1)


def test_the_same_address_in_two_vlans_is_two_addresses() -> None:
    table = ForwardingTable()
    table.learn(10, mac(1), 1, 0.0)
    table.learn(20, mac(1), 2, 0.0)
    ten, twenty = table.lookup(10, mac(1), 0.0), table.lookup(20, mac(1), 0.0)
    assert ten is not None
    assert twenty is not None
    assert (ten.port, twenty.port, table.moved) == (1, 2, 0)


def test_an_address_that_is_not_seen_for_the_ageing_time_is_forgotten() -> None:
    table = ForwardingTable(ageing=300)
    old = table.learn(0, mac(1), 1, 0.0)
    table.learn(0, mac(2), 1, 0.0)
    table.learn(0, mac(2), 1, 200.0)
    assert table.next_expiry() == 300.0
    assert table.lookup(0, mac(1), 299.9) is old
    assert table.lookup(0, mac(1), 300.0) is None, "even before expire() is called"
    table.expire(300.0)
    assert ports(table) == {mac(2): 1}
    assert (old.port, table.expired, table.next_expiry()) == (NOWHERE, 1, 500.0)
    table.expire(500.0)
    assert (len(table), table.next_expiry()) == (0, None)


def test_a_port_that_floods_pushes_out_its_own_oldest_addresses() -> None:
    table = ForwardingTable(limit=100, port_limit=10)
    for number in range(5):
        table.learn(0, mac(number), 0, 0.0)
    for number in range(1000, 2000):
        table.learn(0, mac(number), 1, 1.0)
    assert (table.count(0), table.count(1), len(table)) == (5, 10, 15)
    assert table.evicted == {1: 990}
    assert [entry.mac for entry in table if entry.port == 1] == [mac(number) for number in range(1990, 2000)]


def test_a_full_table_takes_from_the_port_with_the_most_addresses() -> None:
    table = ForwardingTable(limit=10, port_limit=10)
    for number in range(8):
        table.learn(0, mac(number), 0, 0.0)
    for number in range(100, 102):
        table.learn(0, mac(number), 1, 0.0)
    for number in range(102, 105):
        table.learn(0, mac(number), 1, 1.0)
    assert (table.count(0), table.count(1)) == (5, 5)
    assert table.lookup(0, mac(0), 1.0) is None
    for number in range(105, 200):
        table.learn(0, mac(number), 1, 2.0)
    assert (table.count(0), table.count(1)) == (5, 5), "a port that is as large as any other replaces its own"


def test_an_address_in_use_is_not_the_one_to_be_evicted() -> None:
    table = ForwardingTable(port_limit=3)
    busy = table.learn(0, mac(0), 0, 0.0)
    for number in range(1, 50):
        table.refresh(busy, float(number))
        table.learn(0, mac(number), 0, float(number))
    assert table.lookup(0, mac(0), 50.0) is busy


def test_a_port_that_goes_takes_its_addresses_along() -> None:
    table = ForwardingTable()
    entry = table.learn(0, mac(1), 1, 0.0)
    table.learn(0, mac(2), 2, 0.0)
    table.forget(1)
    table.forget(7)
    assert ports(table) == {mac(2): 2}
    assert (entry.port, table.count(1)) == (NOWHERE, 0)


def test_storm_control_grants_so_many_packets_a_second() -> None:
    bucket = TokenBucket(100)
    assert bucket.take(60, 10.0) == 60
    assert bucket.take(60, 10.0) == 40
    assert bucket.take(5, 10.0) == 0
    assert bucket.take(60, 10.5) == 50
    assert bucket.take(500, 100.0) == 100, "a pause saves up no more than one second"

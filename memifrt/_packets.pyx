# cython: language_level=3, freethreading_compatible=True
"""``reply_in_place`` of :mod:`memifrt.packets`, compiled for the usual request; every other packet goes to Python."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from memifrt.types import Mode

cdef extern from "<arpa/inet.h>":
    uint16_t ntohs(uint16_t number) nogil
    uint16_t htons(uint16_t number) nogil

cdef object ETHERNET = Mode.ETHERNET
cdef uint8_t[16] UNSPECIFIED  # C sets it to zeros
# Answers what is not the usual request: (packet, ip, mac, mode, icmp).
cdef object in_python = None

cdef enum:
    # Bytes of the usual request's headers: Ethernet 14, IPv4 without options 20, ICMP up to the checksum 4.
    HEADERS = 38
    # Ethernet 14, IPv6 without extensions 40, ICMPv6 up to the checksum 4.
    HEADERS_IPV6 = 58
    IPV6 = 0x86DD  # the ethertype


def reply_in_place(packet, ip, mac, *, mode=ETHERNET, bint icmp=True):
    cdef Py_buffer held
    cdef bint answered
    if mode is ETHERNET and icmp and is_address(ip, 4) and is_address(mac, 6):
        try:
            PyObject_GetBuffer(packet, &held, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except (TypeError, BufferError):
            return in_python(packet, ip, mac, mode, icmp)
        answered = held.len >= 42 and answer_plain_echo(
            <uint8_t *> held.buf, held.len, <uint8_t *> PyBytes_AS_STRING(ip), <uint8_t *> PyBytes_AS_STRING(mac)
        )
        PyBuffer_Release(&held)
        return True if answered else reply_otherwise(packet, ip, mac)
    if mode is ETHERNET and icmp and is_address(ip, 16) and is_address(mac, 6):
        return reply_otherwise(packet, ip, mac)
    return in_python(packet, ip, mac, mode, icmp)


cdef object reply_otherwise(packet, ip, mac):
    """Answer the usual request of IPv6. Leave a packet of the other protocol than that of ``ip`` unchanged.

    This is a function of its own so that the usual request of IPv4 does not become slower.
    """
    cdef Py_buffer held
    cdef bint answered, foreign
    try:
        PyObject_GetBuffer(packet, &held, PyBUF_SIMPLE | PyBUF_WRITABLE)
    except (TypeError, BufferError):
        return in_python(packet, ip, mac, ETHERNET, True)
    answered = PyBytes_GET_SIZE(ip) == 16 and held.len >= 62 and answer_plain_echo_ipv6(
        <uint8_t *> held.buf, held.len, <uint8_t *> PyBytes_AS_STRING(ip), <uint8_t *> PyBytes_AS_STRING(mac)
    )
    foreign = (
        not answered
        and held.len >= 14
        and (number(<uint8_t *> held.buf + 12) == IPV6) != (PyBytes_GET_SIZE(ip) == 16)
    )
    PyBuffer_Release(&held)
    if answered or foreign:
        return answered
    return in_python(packet, ip, mac, ETHERNET, True)


def compiled(readable, reply):
    """Return the compiled function for ``readable``, which calls ``reply`` for all but the usual request."""
    global in_python
    in_python = reply
    reply_in_place.__module__, reply_in_place.__doc__ = readable.__module__, readable.__doc__
    return reply_in_place


cdef inline bint is_address(address, Py_ssize_t size):
    return PyBytes_CheckExact(address) and PyBytes_GET_SIZE(address) == size


cdef bint answer_plain_echo(uint8_t *packet, Py_ssize_t size, const uint8_t *ip, const uint8_t *mac) noexcept nogil:
    """Turn the usual echo request into its reply: Ethernet, IPv4 without options, not a fragment, a TTL of 64, ICMP.

    The rules are those of ``memifrt.packets.reply``. The headers are copied once, because the peer may change them meanwhile.

    :returns: whether it was one.
    """
    cdef uint8_t header[HEADERS]
    cdef uint16_t sum_
    cdef uint32_t total, sum32
    memcpy(header, packet, HEADERS)
    total = number(&header[16])
    if (
        number(&header[34]) != 0x0800  # type 8, code 0: an echo request
        or memcmp(&header[30], ip, 4)
        or number(&header[22]) != 0x4001  # TTL 64, as in the reply, and ICMP
        or number(&header[12]) != 0x0800
        or header[14] != 0x45
        or number(&header[20]) & 0x3FFF  # a fragment
        or not 28 <= <Py_ssize_t> total <= size - 14
        or header[6] & 1  # a group address is never a source
    ):
        return False
    sum32 = <uint32_t> number(&header[36]) + 0x0800
    sum_ = htons(<uint16_t> (sum32 if sum32 <= 0xFFFF else sum32 - 0xFFFF))
    memcpy(packet, &header[6], 6)
    memcpy(packet + 6, mac, 6)
    memcpy(packet + 26, ip, 4)
    memcpy(packet + 30, &header[26], 4)
    packet[34] = packet[35] = 0
    memcpy(packet + 36, &sum_, 2)
    return True


cdef bint answer_plain_echo_ipv6(
    uint8_t *packet, Py_ssize_t size, const uint8_t *ip, const uint8_t *mac
) noexcept nogil:
    """Turn the usual ICMPv6 echo request into its reply: Ethernet, IPv6 without extension headers, ICMPv6.

    The rules are those of ``memifrt.packets.ipv6.answer_echo``. The headers are copied once, because the peer may change
    them meanwhile.

    :returns: whether it was one.
    """
    cdef uint8_t header[HEADERS_IPV6]
    cdef uint16_t sum_
    cdef uint32_t length, sum32
    memcpy(header, packet, HEADERS_IPV6)
    length = number(&header[18])
    if (
        number(&header[54]) != 0x8000  # type 128, code 0: an echo request
        or memcmp(&header[38], ip, 16)
        or header[20] != 58  # ICMPv6
        or number(&header[12]) != IPV6
        or header[14] >> 4 != 6
        or not 8 <= <Py_ssize_t> length <= size - 54
        or header[6] & 1  # a group address is never a source
        or header[22] == 0xFF  # nor is a multicast address
        or not memcmp(&header[22], UNSPECIFIED, 16)
    ):
        return False
    sum32 = number(&header[56])
    sum_ = htons(<uint16_t> ((sum32 + 0xFFFF - 0x0100) % 0xFFFF))
    memcpy(packet, &header[6], 6)
    memcpy(packet + 6, mac, 6)
    packet[21] = 64
    memcpy(packet + 22, ip, 16)
    memcpy(packet + 38, &header[22], 16)
    packet[54] = 129
    memcpy(packet + 56, &sum_, 2)
    return True


cdef inline uint16_t number(const uint8_t *at) noexcept nogil:
    """Return a number of two bytes in network order."""
    cdef uint16_t value
    memcpy(&value, at, 2)
    return ntohs(value)

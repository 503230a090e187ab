# The queues: a ring with its eventfd. The twin of memifrt/queue/reference.py: the same names, the same order.
# Read docs/memory-order.md (The kick and the mask, The eventfd and the index) before you change an order.

cdef extern from "../system/eventfd_calls.h":
    int memif_drain(int fd) nogil
    int memif_polls(int fd, short events) nogil
    void memif_wait(int first, int second, int milliseconds) nogil
    int memif_duplicate(int fd) nogil
    int64_t memif_now() nogil

cdef extern from "<poll.h>":
    const short POLLIN

cdef extern from "<unistd.h>":
    int close(int fd) nogil
    int getpid() nogil
    int gettid() nogil

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() nogil

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

# forward_from: rounds between two looks at the clock, and nanoseconds between two looks at what may end the loop, and
# between two looks for signals. A look for signals needs the GIL.
cdef enum:
    ROUNDS = 16
    LOOK_EVERY = 1_000_000
    SIGNALS_EVERY = 20_000_000
    # Milliseconds to sleep, at most, while there are no packets; and to wait for room.
    LONGEST_SLEEP = 10
    WAIT_FOR_ROOM = 1
    # Milliseconds that disconnect waits for a loop in another thread.
    LONGEST_WAIT = 1000

cdef object POLLING = RxMode.POLLING, ADAPTIVE = RxMode.ADAPTIVE


def abandon(thing, pid):
    """Call ``abandon`` in a forked child."""
    thing.abandon(pid)


cdef class Queue:
    """See :class:`memifrt.queue.contract.Queue`."""

    # The fork handler refers to it weakly, to call abandon().
    cdef object __weakref__
    cdef readonly int qid
    cdef readonly int ring_size
    # None without a connection.
    cdef RingBase ring
    cdef object event
    # The event's system calls; None if they are not the compiled ones.
    cdef NativeCalls calls
    cdef object violated
    cdef object reason
    # In a forked child: the id of the parent, which owns the queue.
    cdef object owner
    cdef object earlier
    cdef uint64_t interrupts
    # While forward_from runs: the ring, which is not in ``ring`` then, so that every other call finds none.
    cdef RingBase running
    # The thread in which it runs, and whether it must end because the connection does.
    cdef unsigned long runner
    cdef bint ending

    def __init__(self, int qid, RingBase ring not None, event, earlier, violated):
        calls = getattr(event, "calls", None)
        self.qid = qid
        self.ring_size = ring.size
        self.ring = ring
        self.event = event
        self.calls = calls if isinstance(calls, NativeCalls) else None
        self.violated = violated
        self.earlier = earlier
        # Each by itself: the application may hold a queue of an earlier connection, or a burst of its ring.
        pid = os.getpid()
        call_after_fork(self, functools.partial(abandon, pid=pid))
        call_after_fork(ring, functools.partial(abandon, pid=pid))

    def __reduce_ex__(self, protocol):
        refuse_to_copy(self)

    @property
    def connected(self):
        return self.ring is not None or self.running is not None

    @property
    @cython.critical_section
    def counters(self):
        cdef RingBase ring = self.running if self.ring is None else self.ring
        if ring is None and self.owner is not None:
            raise self.disconnected()
        now = self.earlier if ring is None else self.earlier + ring.counters
        return now + QueueCounters(interrupts=self.interrupts)

    def fileno(self):
        fd = self.event.fileno()
        if fd < 0 or self.owner is not None:
            raise self.disconnected()
        return fd

    @cython.critical_section
    def disconnect(self, reason):
        self.end_loop()
        cdef RingBase ring = self.running if self.ring is None else self.ring
        if ring is not None:
            self.earlier += ring.counters
            self.reason = reason
            self.ring = None
            self.running = None
            self.violated = None

    @cython.critical_section
    def abandon(self, pid):
        self.ring = None
        self.running = None
        self.ending = True  # a signal handler that forks runs in the loop, which must not go on in the child
        self.owner = pid
        self.violated = None

    @cython.critical_section
    cdef object disconnected(self):
        """Return a new exception. Several threads may raise it, so they must not share one."""
        if self.owner is not None:
            return ForkedError(self.owner, "queue")
        reason = self.reason
        if self.running is not None:
            return ConfigError(f"queue {self.qid} is in use: forward_from() runs in another thread, or called this one")
        if reason is None:
            return Disconnected(f"queue {self.qid} is not connected")
        error = Disconnected(reason.message, established=reason.established)
        error.__cause__ = reason.__cause__
        return error

    cdef object fail(self, violation):
        """End the connection because the peer broke the ring. Return the exception to raise."""
        with cython.critical_section(self):
            violated = self.violated  # read once: another thread may set it to None
        if violated is not None:
            violated(violation)
        # A new exception: the frames of the one that is kept as the reason would keep the peer's memory mapped.
        return self.disconnected()

    cdef int end_loop(self) except -1:
        """Have a ``forward_from`` in another thread end, and wait until it has. Our own thread's ends by itself."""
        cdef int64_t until = memif_now() + LONGEST_WAIT * <int64_t> 1_000_000
        self.ending = self.running is not None
        while self.running is not None and self.runner != PyThread_get_thread_ident() and memif_now() < until:
            with nogil:
                memif_wait(-1, -1, 1)
        return 0

    cdef int begin_loop(self, RingBase ring) except -1:
        """Take the ring out of everybody's reach.

        Without the GIL another thread may have got it from the queue just before. It finds the ring busy, or held.

        :raises ConfigError: the ring is in use.
        """
        self.await_end()  # otherwise a thread that calls again and again keeps the connection from ending
        with cython.critical_section(self, ring):
            ring.require_idle()
            if ring.open or (ring.is_tx and (<TxRingBase> ring).sending):
                raise ConfigError("buffers of the queues are held: their bursts must end, or be transmitted, first")
            if self.ring is not ring:
                raise self.disconnected()
            ring.busy = True
            self.running = ring
            self.ring = None
            self.runner = PyThread_get_thread_ident()
        return 0

    cdef int after_loop(self, RingBase ring) except -1:
        """Put the ring back, unless the connection or the process has ended meanwhile."""
        with cython.critical_section(self, ring):
            ring.busy = False
            self.ring = self.running
            self.running = None
        return 0

    cdef int await_end(self) except -1:
        """After a loop that ended because the connection does: wait until it has.

        :raises Disconnected: it has ended.
        """
        cdef int64_t until = memif_now() + LONGEST_WAIT * <int64_t> 1_000_000
        while self.ending and self.ring is not None and memif_now() < until:
            with nogil:
                memif_wait(-1, -1, 1)
        if self.ring is None:
            raise self.disconnected()
        return 0

    cdef int notify(self) except -1:
        """Make the eventfd readable."""
        if self.calls is None or not self.calls.submit_kick():
            self.event.notify()  # by a write
        return 0

    cdef bint read_kicks(self) except -1:
        """Make the eventfd unreadable; return whether it was readable."""
        return self.event.drain() if self.calls is None else self.calls.read_kicks()


@cython.final
cdef class Loop:
    """The state that ``forward_from`` needs of its arguments and of the queues, without Python."""

    # Buffers a round; packets in all, or -1; nanoseconds of the clock at the end, or -1.
    cdef int limit
    cdef int64_t packets, end
    # An fd that ends the loop, or -1; or a byte that ends it, or NULL.
    cdef int stop
    cdef const volatile uint8_t *flag
    cdef Py_buffer held
    cdef bint holding
    # Duplicates, so that no other file can get their numbers: the fd to kick, and the fd that the peer kicks (-1 in
    # polling mode).
    cdef int kick, event
    # Whether to mask the peer's interrupts while packets remain.
    cdef bint adaptive
    # When what may end the loop was last looked at, and when signals were. Only the main thread handles signals.
    cdef int64_t looked, signals_seen
    cdef bint is_main

    def __cinit__(self):
        self.stop = self.kick = self.event = -1

    def __dealloc__(self):
        if self.kick >= 0:
            close(self.kick)
        if self.event >= 0:
            close(self.event)
        if self.holding:
            PyBuffer_Release(&self.held)

    cdef int prepare(self, until, packets, timeout, int limit) except -1:
        """Take the arguments of ``forward_from``."""
        self.stop, flag = parse_stop(until)
        if flag is not None:
            PyObject_GetBuffer(flag, &self.held, PyBUF_SIMPLE)
            self.holding = True
            self.flag = <const volatile uint8_t *> self.held.buf
        budget, duration = parse_budget(packets, timeout)
        self.limit = limit
        self.packets = budget
        self.signals_seen = memif_now()
        self.end = -1 if duration < 0 else self.signals_seen + <int64_t> min(<double> duration * 1e9, 4e18)
        self.is_main = gettid() == getpid()
        return 0

    cdef int duplicate(self, TxQueue tx, RxQueue rx) except -1:
        """Duplicate the eventfds.

        :raises MemifOSError: the process has too many open files.
        """
        self.kick = memif_duplicate(tx.fileno())
        self.event = -1 if rx.polling else memif_duplicate(rx.fileno())
        self.adaptive = rx.mode_now is ADAPTIVE
        if self.kick < 0 or (self.event < 0 and not rx.polling):
            number = errno
            raise os_error(f"queue {tx.qid}: cannot duplicate an eventfd", OSError(number, os.strerror(number)))
        return 0

    cdef bint is_over(self) except -1 nogil:
        """Return whether the time or ``until`` ends the loop. Let signal handlers run.

        :raises BaseException: a signal handler raised it.
        """
        cdef int64_t now = memif_now()
        if 0 <= self.end <= now:
            return True
        if now - self.looked < LOOK_EVERY:
            return False
        self.looked = now
        if self.is_main and now - self.signals_seen >= SIGNALS_EVERY:
            self.signals_seen = now
            with gil:
                PyErr_CheckSignals()
        return self.stop >= 0 and memif_polls(self.stop, POLLIN) != 0

    cdef int sleep(self) noexcept nogil:
        """Return for how many milliseconds the loop may sleep."""
        if self.end < 0:
            return LONGEST_SLEEP
        return <int> max(0, min(<int64_t> LONGEST_SLEEP, (self.end - memif_now() + 999_999) // 1_000_000))


@cython.final
cdef class RxQueue(Queue):
    """See :class:`memifrt.RxQueue`."""

    cdef object mode_now, mode_changed, check_caller
    cdef readonly bint polling
    # Whether packets remained in the ring when the last ones were taken; then the eventfd was left readable.
    cdef readonly bint more
    # Whether drain() has read the eventfd since packets were last taken.
    cdef public bint drained
    # Whether adaptive mode has masked the peer's interrupts.
    cdef bint masked
    cdef object mode_change

    def __init__(
        self, int qid, RxRingBase ring not None, event, earlier, violated, mode, mode_changed, check_caller=bool
    ):
        Queue.__init__(self, qid, ring, event, earlier, violated)
        self.mode_now = mode
        self.polling = mode is POLLING
        self.mode_changed = mode_changed
        self.check_caller = check_caller

    def disconnect(self, reason):
        was_connected = self.connected
        Queue.disconnect(self, reason)
        if was_connected:
            self.notify()

    @property
    @cython.critical_section
    def on_mode_change(self):
        return self.mode_change

    @on_mode_change.setter
    @cython.critical_section
    def on_mode_change(self, changed):
        self.mode_change = changed

    @property
    def rx_mode(self):
        return self.mode_now

    @property
    def mode(self):
        warn_renamed("RxQueue.mode", "RxQueue.rx_mode", stacklevel=2)
        return self.mode_now

    def set_mode(self, mode):
        warn_renamed("RxQueue.set_mode()", "RxQueue.set_rx_mode()", stacklevel=2)
        self.set_rx_mode(mode)

    def set_rx_mode(self, rx_mode):
        wanted = parse_rx_mode(rx_mode)
        cdef RxRingBase ring = self.live()
        self.check_caller()
        self.mode_now = wanted
        self.polling = wanted is POLLING
        self.masked = False
        ring.set_mask(wanted is POLLING)
        if wanted is not POLLING:
            # The peer may have seen the mask when it published: look again (memory-order.md, The kick and the mask).
            self.notify()
        self.mode_changed(self)
        changed = self.on_mode_change
        if changed is not None:
            changed()

    def drain(self):
        if self.owner is not None or self.running is not None:
            raise self.disconnected()
        cdef bint drained = self.read_kicks()
        self.interrupts += drained
        self.drained = True
        if self.ring is None:
            self.notify()  # the kick that was read may be the disconnect's: waiting callers must not miss it
        return drained

    def is_readable(self):
        return self.event.is_readable()

    def pending(self):
        cdef RxRingBase ring = self.live()
        try:
            return ring.waiting()
        except RingViolation as error:
            raise self.fail(error) from error

    def burst(self, limit=DEFAULT_BURST, *, bint split=False):
        cdef RxRingBase ring = self.live()
        cdef RingBurst taken
        cdef int most
        try:
            most = check_limit(limit)
            if self.polling:
                return ring.take_burst(most, split)
            self.before(ring, most)
            taken = ring.take_burst(most, split)
            self.after(ring)
            return taken
        except BaseException as error:
            self.raise_failure(error)

    def recv(self, limit=DEFAULT_BURST):
        cdef RxRingBase ring = self.live()
        cdef list packets
        cdef int most
        try:
            most = check_limit(limit)
            if self.polling:
                return ring.recv_packets(most)
            self.before(ring, most)
            packets = ring.recv_packets(most)
            self.after(ring)
            return packets
        except BaseException as error:
            self.raise_failure(error)

    def recv_into(self, matrix, lengths):
        cdef RxRingBase ring = self.live()
        cdef Matrix rows
        cdef Lengths sizes
        cdef int limit, taken
        try:
            rows = Matrix(matrix, True)
            sizes = Lengths(lengths, True)
            limit = <int> min(rows.rows, sizes.count, 0x7FFF)
            if self.polling:
                return ring.recv_rows(rows, sizes, limit)
            self.before(ring, limit)
            taken = ring.recv_rows(rows, sizes, limit)
            self.after(ring)
            return taken
        except BaseException as error:
            self.raise_failure(error)

    def refill(self, count=None, headroom=0):
        return self.live().refill(count, headroom)

    @cython.critical_section
    cdef RxRingBase live(self):
        """Return the ring.

        :raises Disconnected: there is none.
        """
        cdef RingBase ring = self.ring
        if ring is None:
            raise self.disconnected()
        return <RxRingBase> ring

    cdef int relay_to(self, TxRingBase ring, int limit) except -1:
        """Forward packets to a transmit ring; return how many buffers."""
        cdef RxRingBase received = self.live()
        cdef int sent = 0
        try:
            if self.polling:
                sent = ring.relay_packets(received, limit)
            else:
                self.before(received, limit)
                sent = ring.relay_packets(received, limit)
                self.after(received)
        except BaseException as error:
            self.raise_failure(error)
        return sent

    # Packets are taken in the order that loses no wake-up: the eventfd is read first, then the ring's index
    # (memory-order.md, The eventfd and the index). If packets remain, the eventfd is left readable.

    cdef int before(self, RxRingBase ring, int limit) except -1:
        """Read the eventfd, before packets are taken in a mode with interrupts."""
        if self.drained:  # drain() has read the eventfd. A kick since then is only a spurious wake-up later.
            self.drained = False
        elif not (self.more and ring.waiting() > limit):
            self.interrupts += self.read_kicks()
            if self.ring is None:
                self.notify()  # the kick that was read may be the disconnect's: callers must not miss it
        return 0

    cdef int after(self, RxRingBase ring) except -1:
        """Leave the eventfd readable if packets remain, and tell an adaptive queue's peer whether to kick."""
        self.more = ring.more
        if self.more:
            self.stay_readable(ring)
        elif self.masked:
            self.unmask(ring)
        return 0

    cdef int raise_failure(self, error) except -1:
        """:raises BaseException: always: ``error``, which came up while packets were taken."""
        if isinstance(error, RingViolation) and not error.sending:
            raise self.fail(error) from error
        # A bad argument, or a violation on the transmit ring of a relay, which its own queue handles. No packet was
        # taken, but its kick may have been read.
        if not self.polling:
            self.notify()
        raise error

    cdef int stay_readable(self, RxRingBase ring) except -1:
        self.notify()  # even if it was left readable before: the application may have read it
        if self.mode_now is ADAPTIVE and not self.masked:
            ring.set_mask(True)  # the readable eventfd brings us back without a kick
            self.masked = True
        return 0

    cdef int unmask(self, RxRingBase ring) except -1:
        """Ask for interrupts again when the ring is empty, in adaptive mode.

        The peer did not kick for packets that came while the mask was set, so the ring must be read once more
        (memory-order.md, The kick and the mask).
        """
        ring.set_mask(False)
        self.masked = False
        return self.notify()


@cython.final
cdef class TxQueue(Queue):
    """See :class:`memifrt.TxQueue`."""

    # Whether a packet longer than a buffer is sent as a chain.
    cdef bint chained
    # Called on the sender's thread when a send may have left packets that need another kick.
    cdef object watch
    cdef bint watched
    cdef uint64_t repeated_kicks

    def __init__(self, int qid, TxRingBase ring not None, event, earlier, violated, bint chained, watch):
        Queue.__init__(self, qid, ring, event, earlier, violated)
        self.chained = chained
        self.watch = watch

    @property
    def counters(self):
        return Queue.counters.__get__(self) + QueueCounters(repeated_kicks=self.repeated_kicks)

    def free(self):
        cdef TxRingBase ring = self.live()
        try:
            return ring.free_room()
        except RingViolation as error:
            raise self.fail(error) from error

    def in_flight(self):
        return self.live().unreturned()

    def send(self, packets):
        cdef TxRingBase ring = self.live()
        cdef Py_ssize_t sent = 0
        try:
            sent = ring.send_packets(packets, self.chained)
        except RingViolation as error:
            raise self.fail(error) from error
        except TypeError:
            check_packets(packets)
            raise
        if not sent:
            check_packets(packets)
        return self.kicked(ring, sent)

    def send_from(self, matrix, lengths):
        cdef TxRingBase ring = self.live()
        cdef Py_ssize_t sent = 0
        try:
            sent = ring.send_rows(Matrix(matrix, False), Lengths(lengths, False), self.chained)
        except RingViolation as error:
            raise self.fail(error) from error
        return self.kicked(ring, sent)

    def forward(self, source, limit=DEFAULT_BURST):
        cdef TxRingBase ring = self.live()
        cdef Py_ssize_t sent = 0
        try:
            if type(source) is RxQueue:
                sent = (<RxQueue> source).relay_to(ring, check_limit(limit))
            else:
                sent = ring.forward_burst(source)
        except RingViolation as error:
            raise self.fail(error) from error
        return self.kicked(ring, sent)

    def forward_from(self, source, *, until=None, packets=None, timeout=None, limit=DEFAULT_BURST):
        cdef TxRingBase ring = self.live()
        cdef RxRingBase received
        cdef RxQueue queue
        cdef Loop loop = Loop()
        if type(source) is not RxQueue:
            raise ConfigError(f"{source!r} is not a receive queue of this implementation")
        queue = source
        received = queue.live()
        loop.prepare(until, packets, timeout, check_limit(limit))
        cdef uint64_t before = 0
        try:
            loop.duplicate(self, queue)
            # While Python ran above, another thread may have begun a loop, taken a burst, or ended the connection. From
            # here to begin_loop no Python runs.
            ring, received = self.live(), queue.live()
            if received.open or ring.open or ring.sending:
                raise ConfigError("buffers of the queues are held: their bursts must end, or be transmitted, first")
            before = ring.packets
            self.begin_loop(ring)
            try:
                queue.begin_loop(received)
                try:
                    with nogil:
                        self.run(queue, received, ring, loop)
                finally:
                    queue.after_loop(received)
            finally:
                self.after_loop(ring)
                if not queue.polling and queue.ring is not None:
                    queue.notify()  # packets may be left after their kick was read
        except RingViolation as error:
            raise (self.fail(error) if error.sending else queue.fail(error)) from error
        self.await_end()
        queue.await_end()
        return ring.packets - before

    cdef int run(self, RxQueue source, RxRingBase received, TxRingBase ring, Loop loop) except -1 nogil:
        """The loop of ``forward_from``. It has both rings to itself: see ``begin_loop``."""
        cdef uint64_t first = ring.packets, done
        cdef int rounds = 0, limit = loop.limit, sent, last = 0
        cdef bint masked
        while not self.ending:
            # If the source's connection ends, disconnect() waits while what its peer sent before is forwarded. In our
            # own thread it does not wait: a signal handler has closed the connection.
            last += source.ending
            if last and (source.running is None or last * limit > received.size + limit):
                break
            if loop.flag is not NULL and loop.flag[0]:
                break
            if not rounds % ROUNDS:
                if loop.is_over():
                    break
                if self.ending or source.ending and not last:  # a signal handler did that
                    continue
            rounds += 1
            if loop.packets >= 0:
                done = ring.packets - first
                if done >= <uint64_t> loop.packets:
                    break
                limit = <int> min(<uint64_t> loop.limit, <uint64_t> loop.packets - done)
            # While packets remain, the eventfd may stay readable: nothing waits for it.
            if loop.event >= 0 and not received.more and memif_drain(loop.event) > 0:
                source.interrupts += 1
            sent = ring.relay_entries(received, limit)
            if loop.adaptive and received.more and not source.masked:
                received.set_interrupts(False)  # we come back without a kick
                source.masked = True
            if sent:
                masked = memif_load_fence(&ring.ring.flags) & MASK_INT  # memory-order.md, F2
                if not masked:
                    kick_number(loop.kick)
                    self.interrupts += 1
                if not self.watched and ring.unreturned() > (not masked):
                    self.watch_leftovers()
            elif last:
                break
            elif source.masked and not received.more:
                # Look once more: the peer did not kick while the mask was set (memory-order.md, The kick and the mask).
                received.set_interrupts(True)
                source.masked = False
            elif loop.event >= 0:
                rounds = 0
                if received.more:  # there is no room
                    memif_wait(-1, loop.stop, WAIT_FOR_ROOM)
                else:
                    memif_wait(loop.event, loop.stop, loop.sleep())
        return 0

    cdef int watch_leftovers(self) except -1 with gil:
        """Have the runtime check later whether the peer has taken everything."""
        self.watched = True
        self.watch(self)
        return 0

    def alloc(self, count, size=None):
        cdef TxRingBase ring = self.live()
        if not self.chained and size is not None and size > ring.capacity > 0:
            raise ConfigError(
                f"a packet of {size} bytes does not fit into a buffer of {ring.capacity}, and chains are switched off"
            )
        try:
            return ring.allocate(count, size)
        except RingViolation as error:
            raise self.fail(error) from error

    def enqueue(self, burst, first=0, count=None):
        cdef TxRingBase ring = self.live()
        try:
            return ring.enqueue(burst, first, len(burst) - first if count is None else count)
        except RingViolation as error:
            raise self.fail(error) from error

    def transmit(self, burst, count=None):
        cdef TxRingBase ring = self.live()
        return self.kicked(ring, ring.transmit_burst(burst, count))

    def rewind(self, burst, index):
        self.live().rewind(burst, index)

    @cython.critical_section
    cdef TxRingBase live(self):
        """Return the ring.

        :raises Disconnected: there is none.
        """
        cdef RingBase ring = self.ring
        if ring is None:
            raise self.disconnected()
        return <TxRingBase> ring

    cdef object kicked(self, TxRingBase ring, Py_ssize_t sent):
        """Kick once for the published packets, unless the peer has masked its interrupts. Return ``sent``."""
        if not sent:
            return sent
        cdef bint masked = memif_load_fence(&ring.ring.flags) & MASK_INT  # memory-order.md, F2
        if not masked:
            try:
                self.notify()
            except OSError as error:
                what = f"tx ring {self.qid}: {sent} packets are published, but the peer could not be interrupted"
                raise os_error(what, error, code=ErrorCode.INT_WRITE) from error
            self.interrupts += 1
        # Every peer takes one packet for a kick. Packets sent without a kick are at risk if the peer stops polling now.
        if not self.watched and ring.unreturned() > (not masked):
            self.watched = True
            self.watch(self)
        return sent

    # --- called by the runtime's timer, on the control thread ---------------------------------------------------

    def glance(self):
        cdef TxRingBase ring = <TxRingBase> (self.running if self.ring is None else self.ring)
        if ring is None:
            return None
        left, ours, theirs = ring.unreturned(), ring.head, ring.tail
        capacity = ring.capacity
        if not capacity:  # a master's: it moves the tail
            ours, theirs = theirs, ours
        is_certain = capacity > 0 or left >= BATCH
        masked = bool(ring.flags & MASK_INT)
        return Glance(ours, theirs, left, is_certain, masked, bool(left) and not self.event.is_readable())

    def kick_again(self):
        self.notify()
        self.repeated_kicks += 1

    def stop_watching(self):
        self.watched = False

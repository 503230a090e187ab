"""Choose the dispatcher: the compiled one, if it is built."""

from __future__ import annotations

from memifrt.poll.dispatch import Dispatcher, OnError, PythonDispatcher
from memifrt.poll.epoll import EpollPoller
from memifrt.poll.hook import Handler


def make_dispatcher(
    handlers: dict[int, Handler], poller: EpollPoller | None = None, on_error: OnError | None = None
) -> Dispatcher:
    """Return a dispatcher. The parameters are those of :class:`memifrt.poll.dispatch.PythonDispatcher`."""
    try:
        from memifrt.poll._dispatch import NativeDispatcher
    except ImportError:
        return PythonDispatcher(handlers, poller, on_error)
    return NativeDispatcher(handlers, poller, on_error)

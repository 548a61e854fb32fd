"""SIGTERM, where nobody else has a use for it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_sigterm(told: Callable[[], None]) -> Iterator[None]:
    """Call ``told`` when SIGTERM comes, in the main thread and in place of the usual end alone."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: told())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

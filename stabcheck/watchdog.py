"""A watchdog: a kernel that does not come back is a finding of kind `hang`, and not a session that waits for ever.

Through the interpreter the kernel is interrupted. On a GPU nothing can stop it: the finding is handed over, and the process ends, since its
context answers no more. A patient thread looks on; the limits are far beyond what any law takes, so they are no test of speed.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# By "on a GPU": by the clock there; through the interpreter in the thread's own time, however busy the machine is.
SECONDS = {True: 600.0, False: 120.0}
LOOKS = 50  # a limit is looked at so many times


class Hung(BaseException):
    """Raised in the main thread to interrupt a kernel; no Exception, so that no kernel swallows it."""


@contextmanager
def watched(on_gpu: bool, hung: Callable[[], None]) -> Iterator[None]:
    """Run a block under the limit. Through the interpreter it raises Hung; on a GPU another thread calls `hung`, which must end it all.

    Does nothing outside the main thread, which alone can be interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(on_gpu, hung)
    watch.before = None if on_gpu else signal.signal(signal.SIGALRM, _raise)
    _WATCHES.append(watch)
    _start()
    try:
        yield
    finally:
        _WATCHES.remove(watch)
        if not on_gpu:
            signal.signal(signal.SIGALRM, watch.before)


class _Watch:
    def __init__(self, on_gpu: bool, hung: Callable[[], None]) -> None:
        self.on_gpu, self.hung, self.told = on_gpu, hung, False
        self.before: Any = None  # who else waits for the alarm
        main = threading.main_thread().ident
        assert main is not None
        self.clock = time.CLOCK_MONOTONIC if on_gpu else time.pthread_getcpuclockid(main)
        self.deadline = time.clock_gettime(self.clock) + SECONDS[on_gpu]

    def look(self) -> None:
        """Act, once, if time is up."""
        if self.told or time.clock_gettime(self.clock) < self.deadline:
            return
        self.told = True
        if self.on_gpu:
            self.hung()
        else:
            _thread.interrupt_main(signal.SIGALRM)


_WATCHES: list[_Watch] = []
_THREADS: list[threading.Thread] = []


def _start() -> None:
    """One thread for the whole process, started with the first watch."""
    if not _THREADS:
        _THREADS.append(threading.Thread(target=_patrol, name="stabcheck watchdog", daemon=True))
        _THREADS[0].start()


def _patrol() -> None:
    while True:
        time.sleep(min(SECONDS.values()) / LOOKS)
        for watch in list(_WATCHES):
            watch.look()


def _raise(number: int, frame: Any) -> None:
    """Our own alarm interrupts; another's goes where it would have gone."""
    if any(watch.told for watch in _WATCHES):
        raise Hung
    if _WATCHES and callable(_WATCHES[-1].before):
        _WATCHES[-1].before(number, frame)

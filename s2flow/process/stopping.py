"""Signals that stop a run so that it can go on later: SIGTERM, SIGUSR1, SIGUSR2.

Slurm sends them before it takes a node away (`--signal=USR1@90`, preemption). While a job is at work
the first one only leaves a note. A clip that is being decoded, written, recorded or scored is finished;
one whose flow is not complete is dropped at its next step, and the LR flow that it had made stays in
the cache. Then the whole sweep stops, one line says what was dropped, and the exit status is 75
(EX_TEMPFAIL), upon which a script may requeue itself: the same command goes on.

A second signal, more than a second later (launchers pass on what their children got themselves), stops
as soon as the running operator returns. SIGKILL and a pulled plug cost the clip in flight, too, and its
temporary files, which the next start removes. SIGINT is Python's: KeyboardInterrupt, exit status 130.

`caught` is entered by run.py alone, so that whoever imports s2flow keeps his handlers, and it takes
only signals that nobody else has: submitit's own, which resubmits the job, stays where it is.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EX_TEMPFAIL = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
ECHO = 1.0  # seconds in which another signal is the same request


class Preempted(BaseException):
    """A signal has stopped the run; `by` names it, `dropped` holds the prompts of dropped clips.

    Not an Exception: no clip has failed, and a sweep must not go on with its next job.
    """

    def __init__(self, by: str, dropped: tuple[str, ...] = (), at_once: bool = False) -> None:
        super().__init__(by, dropped, at_once)
        self.by, self.dropped, self.at_once = by, dropped, at_once


class _Asked:
    """What this process was told."""

    by: str | None = None
    at = 0.0
    working = False


def asked() -> str | None:
    """The signal that asked this process to stop, if one did."""
    return _Asked.by


def check() -> None:
    """Raises Preempted if a signal has asked for it."""
    if _Asked.by is not None:
        raise Preempted(_Asked.by)


@contextmanager
def caught(working: bool = False) -> Iterator[None]:
    """Catch the signals that nobody else handles, and restore them at the end.

    working: what runs inside looks at `asked` or `check`; else a signal raises Preempted where it
    comes. Outside the main thread, where Python allows no handlers, nothing is caught.
    """
    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [s for s in SIGNALS if signal.getsignal(s) is signal.SIG_DFL]
    outer, _Asked.working = _Asked.working, working
    try:
        for s in mine:
            signal.signal(s, _note)
        check()  # what came between two jobs of a sweep
        yield
    finally:
        _Asked.working = outer
        for s in mine:
            signal.signal(s, signal.SIG_DFL)
        if mine:
            _Asked.by = None


def _note(number: int, frame: FrameType | None) -> None:
    again, now = _Asked.by is not None, time.monotonic()
    if again and now - _Asked.at < ECHO:
        return
    _Asked.by, _Asked.at = signal.Signals(number).name, now
    if again or not _Asked.working:
        raise Preempted(_Asked.by, at_once=True)

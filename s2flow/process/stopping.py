"""Signals that stop a run so that it can be resumed: SIGTERM, SIGUSR1, SIGUSR2.

Slurm sends them before preemption or the time limit (`--signal=USR1@90`). While a job is working, the
first signal sets a flag. A clip that is being decoded, written, recorded or scored is finished. A clip
whose flow is incomplete is dropped at its next step; its LR flow, if complete, stays in the cache. Then
the whole sweep stops, one line names the dropped clips, and the exit status is 75 (EX_TEMPFAIL), after
which a script may requeue the job: the same command resumes it.

A second signal, more than a second later (launchers forward signals that their children have received
already), stops as soon as the running operator returns. SIGKILL and power loss also lose the clip in
flight and leave its temporary files, which the next start removes. SIGINT keeps Python's handler:
KeyboardInterrupt, exit status 130.

Only run.py enters `caught`, so importing s2flow installs no handlers. Signals that have a handler keep
it, such as submitit's, which requeues the job.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EX_TEMPFAIL = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
DEBOUNCE_SECONDS = 1.0  # within which another signal is the same request


class Preempted(BaseException):
    """A signal stopped the run. by: its name; dropped: prompts of the dropped clips.

    Not an Exception: no clip has failed, and a sweep must not go on with its next job.
    """

    def __init__(self, by: str, dropped: tuple[str, ...] = (), at_once: bool = False) -> None:
        super().__init__(by, dropped, at_once)
        self.by, self.dropped, self.at_once = by, dropped, at_once


class _Request:
    """The pending request to stop: signal, time, and whether a job is working."""

    by: str | None = None
    at = 0.0
    working = False


def asked() -> str | None:
    """Name of the signal that asked this process to stop, or None."""
    return _Request.by


def check() -> None:
    """Raises Preempted if a signal has asked this process to stop."""
    if _Request.by is not None:
        raise Preempted(_Request.by)


@contextmanager
def caught(working: bool = False) -> Iterator[None]:
    """Handle the signals that have no handler yet, and restore them at the end.

    working: the code inside polls `asked` or `check`; otherwise a signal raises Preempted at once.
    Outside the main thread, where Python allows no handlers, nothing is caught.
    """
    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [s for s in SIGNALS if signal.getsignal(s) is signal.SIG_DFL]
    outer, _Request.working = _Request.working, working
    try:
        for s in handled:
            signal.signal(s, _handle)
        check()  # a signal between two jobs of a sweep
        yield
    finally:
        _Request.working = outer
        for s in handled:
            signal.signal(s, signal.SIG_DFL)
        if handled:
            _Request.by = None


def _handle(number: int, frame: FrameType | None) -> None:
    repeated, now = _Request.by is not None, time.monotonic()
    if repeated and now - _Request.at < DEBOUNCE_SECONDS:
        return
    _Request.by, _Request.at = signal.Signals(number).name, now
    if repeated or not _Request.working:
        raise Preempted(_Request.by, at_once=True)

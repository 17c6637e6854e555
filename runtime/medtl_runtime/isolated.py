"""Work in a child process that may crash, hang or take too much memory without harm.

Some decoders abort the whole process on damaged data. A `Worker` is a long-lived child that does
named tasks, one at a time; when one ends it, the task fails and the next call starts another. The
child keeps damage apart, not malice: its answers are trusted.

Messages are pickles behind their length, over pipes. The child is a fresh interpreter and not a
fork, so that it has none of the parent's threads, and nothing of its ``__main__`` is run again.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from struct import Struct
from typing import IO, Any, NoReturn

from medtl_runtime.errors import MedtlError, ScanUnreadable

TASKS = {
    "decode_frame": ("medtl_runtime.decoders", "decode_frame"),
    "prepare": ("medtl_runtime.preparation", "prepare_chunk"),
}
"""What a child can do: the functions by name, imported when they are first called."""

SECONDS = 60.0
"""What a task may take by default. The largest frame of the slowest decoder takes about 10 s."""

MEMORY = 4 * 2**30
"""Address space of a child in bytes: interpreter and packages take 1 GiB, of which little is ever
used, and the largest frame takes up to 1.5 GiB."""

_LENGTH = Struct(">Q")


class Worker:
    """A child process for tasks; it is started by the first, and ends with this process."""

    def __init__(self, *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        """Make a worker.

        Parameters
        ----------
        seconds
            What a task may take before the child is ended, unless the call says otherwise.
        memory
            Address space that the child may take, in bytes.
        """
        self._seconds, self._memory = seconds, memory
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize | None = None

    def call(
        self, task: str, *arguments: Any, source: str = "", seconds: float | None = None
    ) -> Any:
        """Do a task and return its result; one call at a time, others wait.

        Parameters
        ----------
        task
            A name in `TASKS`, or ``module:function`` of a package above this one.
        arguments
            Of the function; they are pickled, as is the result.
        source
            The scan that it is about, for errors; the first argument by default.

        Raises
        ------
        ScanUnreadable
            The child crashed, ran out of memory or out of time.
        MedtlError
            As raised by the task.
        RuntimeError
            Any other exception of the task, as text.
        """
        message = pickle.dumps((task, arguments, seconds or self._seconds), protocol=5)
        with self._lock:
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                _send(child.stdin, message)
                answer = _receive(child.stdout)
            except OSError:
                answer = None
            if answer is None:
                ended = self._end()
                raise ScanUnreadable(source or str(arguments[0]), _how(ended))
        done, value = pickle.loads(answer)
        if not done:
            raise value
        return value

    def close(self) -> None:
        """End the child; a later call starts another."""
        with self._lock:
            if self._child is not None:
                self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            # -P: the current folder may hold anything, and is no place to import from.
            command = [sys.executable, "-P", "-m", "medtl_runtime.isolated", str(self._memory)]
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders write there, in C, what is in the file
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
            self._finalizer = weakref.finalize(self, _end, self._child, os.getpid())
        return self._child

    def _end(self) -> int:
        assert self._child is not None
        assert self._finalizer is not None
        child, self._child = self._child, None
        self._finalizer.detach()
        return _end(child, os.getpid())


def _end(child: subprocess.Popen[bytes], owner: int) -> int:
    """End a child and return its exit status; a fork of its owner only lets go of it."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent cannot be sent any more
                pipe.close()
    if owner != os.getpid():
        return 0
    try:
        return child.wait(timeout=1)  # it ends by itself when its input does
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _how(status: int) -> str:
    if status == -signal.SIGALRM:
        return "took too long to decode"
    return "the decoder crashed, or took too much memory"


@lru_cache(maxsize=1)
def _decoding_worker(_process: int) -> Worker:
    return Worker()


def decoding_worker() -> Worker:
    """Return this process's worker for frames; a fork gets one of its own."""
    return _decoding_worker(os.getpid())


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """Return the next message; None when the other side has ended."""
    start = pipe.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(start)
    message = pipe.read(length)
    return message if len(message) == length else None


# --- in the child


def main() -> NoReturn:
    """Do tasks until standard input ends."""
    _limit(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while (message := _receive(sys.stdin.buffer)) is not None:
        task, arguments, seconds = pickle.loads(message)
        # The default action ends the process, even within a decoder that never returns, and also
        # when the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = _answer(task, arguments)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, answer)
    sys.exit(0)


def _limit(memory: int) -> None:
    import logging
    import resource
    import warnings

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the images
    for one in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, and what ends a service, are the parent's
        signal.signal(one, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable()


def _answer(task: str, arguments: tuple[Any, ...]) -> bytes:
    try:
        module, name = TASKS.get(task) or task.split(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return pickle.dumps((True, function(*arguments)), protocol=5)
    except MedtlError as error:
        return pickle.dumps((False, error), protocol=5)
    except BaseException as error:
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")), protocol=5)


if __name__ == "__main__":
    main()

"""What the program prints, and where it cannot: checked at the start and at each line."""

import os
import sys
from typing import TextIO

from i2x_jax.config import InputError


def say(text: str) -> None:
    """Prints on stdout; raises `InputError` where that cannot be written to."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise InputError(
            f"standard output cannot be written to ({error.strerror}); allowed: a terminal, a pipe, or a file with "
            "space; send it elsewhere"
        ) from None


def drop_output(stream: TextIO | None = None) -> None:
    """Sends what is left of a stream nowhere: Python writes it at the end of the process, and would fail once more."""
    stream = sys.stdout if stream is None else stream
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_surroundings() -> None:
    """Makes of stdout and stderr what can be written to, or raises `InputError`.

    Raises:
      InputError: standard output is closed, or the current folder is gone.
    """
    # A file that is opened later must not get the number of a stream that is closed: it would be written to.
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    if sys.stdout is None:
        raise InputError("standard output is closed; allowed: a terminal, a file or a pipe; to see nothing, >/dev/null")
    for stream in (sys.stdout, sys.stderr):
        # Names of classes and folders hold anything, and an ASCII terminal has no ±.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(
            f"the current folder cannot be used ({error.strerror}); allowed: one that exists; change to another"
        ) from None

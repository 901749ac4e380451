"""What the verbs say: results on stdout, faults and progress on stderr."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from tracekit.errors import OutputError


def say(text: str) -> None:
    """A result on stdout, at once: only so is a full disk or a closed pipe seen here and not after the end."""
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise OutputError(f"standard output: cannot be written: {error.strerror}") from error


def drop_stdout() -> None:
    """What stdout still holds goes nowhere, lest its flush at the end of the process fails once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(message: str) -> None:
    print(f"tracekit: {message}", file=sys.stderr)  # noqa: T201


def progress(verb: str) -> Callable[[int, int], None] | None:
    """A line on stderr that counts up, where stderr is a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\r" if done < total else "\r\033[K"
        print(f"{verb} {done / max(total, 1):4.0%}", end=end, file=sys.stderr, flush=True)  # noqa: T201

    return show


def show(document: Any, text: str, *, as_json: bool) -> None:  # noqa: ANN401 -- any JSON document
    """A result on stdout: as JSON, or as ``text``."""
    if as_json:
        print_json(document)
    else:
        say(text)


def print_json(document: Any) -> None:  # noqa: ANN401 -- any JSON document
    say(json.dumps(document, indent=1))


def print_table(texts: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(texts)
        return
    for name, text in texts.items():
        say(f"{name:<34} {text}")

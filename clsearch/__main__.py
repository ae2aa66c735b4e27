"""Where the command line begins; `python -m clsearch` is `clsearch`."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import NoReturn

from clsearch.errors import ClsearchError, InputError, is_unwritten, unwritten
from clsearch.signals import Leaving, stop_on_signals, stopper

_UNSEEN = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


def main() -> None:
    """Entry point of a process: a command, stopped by signals, and ended with its exit code."""
    stop_on_signals()
    leaving = Leaving()
    try:
        act()
        leaving.code = 0
    except SystemExit as end:
        leaving.code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:  # while something else was said
        leaving.code = 130


def act() -> None:
    """Runs the command of `sys.argv` and turns errors into messages and exit codes. Raises
    `SystemExit`."""
    try:
        from clsearch.cli import app  # takes a moment, in which Ctrl-C may come

        try:
            app()
        except SystemExit:
            if sys.stdout is not None:  # it was closed
                sys.stdout.flush()  # what cannot be written is said, too
            raise
    except ClsearchError as error:
        _end(_as_option(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if is_unwritten(error):
            if (code := _wrong_use(error.__context__)) is not None:
                sys.exit(code)  # there is nowhere to say it
            _end(unwritten(error))
        if error.errno not in _UNSEEN or not _typed(error.filename):
            raise
        allowed, reason = "one that this process can look at", f"The reason: {error.strerror}."
        _end(InputError("path", os.fsdecode(error.filename), allowed, reason))


def _wrong_use(error: BaseException | None) -> int | None:
    """The exit code of one of typer's exceptions, or None."""
    return None if isinstance(error, ClsearchError) else getattr(error, "exit_code", None)


def _typed(path: object) -> bool:
    """Whether a path is one of the command's words, or lies in such a folder."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    place = os.path.abspath(os.fsdecode(path))
    words = {os.path.abspath(word.rpartition("=")[2]) for word in sys.argv[1:]}
    return any(place == word or place.startswith(f"{word}{os.sep}") for word in words)


def _end(error: ClsearchError) -> NoReturn:
    from clsearch.messages import printable

    with contextlib.suppress(OSError):  # it may be on the disk that is full
        print(f"clsearch: {printable(str(error))}", file=sys.stderr)
    stopper.way_on = None
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_output()
    sys.exit(error.exit_code)


def _drop_output() -> None:
    """What cannot be written is not tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_option(error: ClsearchError) -> ClsearchError:
    """The same error, its field as it is typed where it is an option of the command that ran."""
    if not isinstance(error, InputError):
        return error
    import typer

    from clsearch.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    invoked = next((commands[word] for word in sys.argv[1:] if word in commands), None)
    options = {name for p in (invoked.params if invoked else ()) for name in p.opts}
    typed = "--" + error.field.replace("_", "-")
    return InputError(typed, error.value, error.allowed, error.step) if typed in options else error


if __name__ == "__main__":
    main()

"""The errors clsearch raises on purpose; each carries the exit code of the command line."""

from __future__ import annotations

import errno
import reprlib
from collections.abc import Iterable

from clsearch.redaction import redacted

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother = 400, 200

LOOKED_AT = 5000
"""Characters of both ends of a value that secrets are looked for in."""

MISSING = object()
"""The value of an `InputError` where nothing was given; `allowed` is then what to give."""


class ClsearchError(Exception):
    """The run failed for a reason that has a name. Exit code 1. Its message holds no secrets."""

    exit_code = 1

    def __str__(self) -> str:
        return redacted(super().__str__())


class InputError(ClsearchError):
    """Something the user gave is wrong. Exit code 2; the message is all the user has to read.

    `field` is where it stands (`methods[0].grid.lr`), `value` what was found, `allowed` what may
    stand there, `step` what to do next.
    """

    exit_code = 2

    def __init__(self, field: str, value: object, allowed: str, step: str = "") -> None:
        self.field, self.value, self.allowed, self.step = field, value, allowed, step
        shown = redacted(_ends(value)) if isinstance(value, str) else value  # before it is cut
        message = f"{field}: {_SHORT.repr(shown)} is not allowed. Allowed: {allowed}."
        if value is MISSING:
            message = f"{field} is missing. Give {allowed}."
        super().__init__(f"{message} {step}".rstrip())

    def under(self, section: str) -> InputError:
        """The same error of a field within a section."""
        return InputError(f"{section}.{self.field}", self.value, self.allowed, self.step)


def _ends(text: str) -> str:
    """What of a text is looked at for secrets: more than is shown of it."""
    return text if len(text) <= 2 * LOOKED_AT else f"{text[:LOOKED_AT]} … {text[-LOOKED_AT:]}"


class StoreError(ClsearchError):
    """Records or checkpoints cannot be written or read (disk full, no permission, store away)."""


class DamagedError(StoreError):
    """A stored file does not match the SHA-256 its manifest names."""


class DeviceLostError(ClsearchError):
    """A GPU has failed under this process, which can compute nothing on it any more: no trial's
    fault."""


class InterruptedRunError(ClsearchError):
    """The user or the system stopped the run (Ctrl-C, SIGTERM); it can be taken up again."""

    exit_code = 130


class DepletedError(ClsearchError):
    """A method has no free neurons left to learn the task with: an ordinary end of a chain."""


class UndeliveredError(Exception):
    """Why an entry for MLflow was not delivered by another process. `refused`: for a
    reason of the entry's own, which another attempt cannot change."""

    def __init__(self, said: str, refused: bool) -> None:
        super().__init__(said)
        self.refused = refused


def is_unwritten(error: OSError) -> bool:
    """Whether an output takes nothing more: a full disk, a pipe that nobody reads. Such an error
    names no file, as those do that come of opening one."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)


def unwritten(
    error: OSError, step: str = "Make room there, or send it elsewhere."
) -> ClsearchError:
    """What is said of an output that takes nothing more, with what to do next."""
    return ClsearchError(f"the output cannot be written: {error.strerror}. {step}")


def unknown(field: str, value: object, known: Iterable[str]) -> InputError:
    """An unknown name, refused with the known ones listed."""
    return InputError(field, value, "one of " + ", ".join(sorted(known)))

"""Secrets taken out of what is said: messages, the audit trail, logs."""

from __future__ import annotations

import os
import re
from functools import cache

NAMES = (
    r"[\w.-]*(?:passw(?:or)?d|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credential|signature)[\w.-]*"
)
"""What names of secrets contain, in any case."""

_NAME = re.compile(NAMES, re.IGNORECASE)
_USER = re.compile(r"(\w://)(?:[^/\s'\"]*|[^/\s'\"]*:[^\s'\"]*)@")
_PAIR = re.compile(
    rf"(?<![\w.-])({NAMES})(['\"]?\s*[:=]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&}}\])]+)", re.IGNORECASE
)
_PARAMETER = re.compile(r"[?&;](" + NAMES + r")=[^&;#\s]", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a value that is looked for by itself: a shorter one would be found in words."""


def redacted(text: str) -> str:
    """The text with `…` for the name and password of an address, for what is set to a name like
    `password` or `token`, and for the value of every environment variable of such a name."""
    for value in _environment():
        text = text.replace(value, "…")
    text = _BEARER.sub(r"\1 …", _USER.sub(r"\1…@", text))
    return _PAIR.sub(r"\1\2…", text)


def holds_secret(address: str) -> bool:
    """Whether an address has a name or password before its host, or a parameter like `?token=…`."""
    before = address.partition("?")[0]
    return bool(re.match(r"[^/]*//(?:[^/]*|[^/]*:.*)@", before) or _PARAMETER.search(address))


@cache
def _secret(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _environment() -> list[str]:
    """The values of environment variables that are secrets by their name, longest first."""
    values = (os.environ.get(name, "") for name in os.environ if _secret(name))
    found = {value for value in values if len(value) >= _SHORTEST and not os.path.isabs(value)}
    return sorted(found, key=len, reverse=True)

"""Secrets taken out of what is said: messages, the audit trail, logs."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from urllib.parse import quote, quote_plus

_WORDS = (
    r"passw(?:or)?d|passphrase|(?<![^\W_])(?:pg)?pass(?![^\W_])|pwd|secret|token|api[_-]?key"
    r"|access[_-]?key|account[_-]?key|private[_-]?key|credential|signature|cookie"
)
"""What names of secrets contain, in any case."""

# What others wrote is looked through: no pattern may take more than linear time, so that words are
# taken whole (`++`) and what has no end is bounded.
_ANY = r"[^\s'\"]{0,2000}"
_NAME = rf"(?=[\w.-]*?(?:{_WORDS})|sig(?![\w.-]))[\w.-]++"  # `sig` signs addresses of Azure
_TEXT = r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\""
_GROUP = r"\{[^{}]*\}|\[[^\[\]]*\]|[{\[][\s\S]*"  # where others are in it, all that follows
_FULL_NAME = re.compile(_NAME, re.IGNORECASE)
_USER = re.compile(rf"(\w://)[^/\s'\":@]*+(?::{_ANY}|(?=@))@")
_BARE_USER = re.compile(r"(?<![\w./:@+-])[\w.+-]++:[^\s/@'\"]{1,2000}@(?=[\w.-])")
_PAIR = re.compile(
    rf"(?<![\w.-])({_NAME})(['\"]?\s*[:=]\s*)({_TEXT}|{_GROUP}|[^\s,;&}}\])]+)", re.IGNORECASE
)
_OPTION = re.compile(rf"(?<![\w.-])(--{_NAME}\s+)[^\s-]\S*", re.IGNORECASE)
_PARAMETER = re.compile(rf"[?&;#]{_NAME}=[^&;#\s]", re.IGNORECASE)
_SCHEME = re.compile(
    r"\b(authorization['\"]?\s*[:=]\s*['\"]?\w+|Bearer|Basic(?=\s+[\w.~+/=-]{8}))\s+[\w.~+/=-]+",
    re.IGNORECASE,
)
_SHORTEST = 8
"""Characters of a value that is looked for by itself: a shorter one would be found in words."""
_PLACE = re.compile(r"(?:path|file|dir|folder|^(?:old)?pwd)$", re.IGNORECASE)
"""How names of variables end that say where a secret lies; `PWD` is the folder of the shell."""


def redacted(text: str) -> str:
    """The text with `…` for the name and password of an address, for what is set to a name like
    `password` or `token`, and for the value of every environment variable of such a name."""
    for value in _environment():
        text = text.replace(value, "…")
    text = _BARE_USER.sub("…@", _USER.sub(r"\1…@", text))
    text = _OPTION.sub(r"\1…", _SCHEME.sub(r"\1 …", text))
    return _PAIR.sub(r"\1\2…", text)


def holds_secret(address: str) -> bool:
    """Whether an address has a name or password before its host, or a parameter like `?token=…`."""
    before = address.partition("?")[0]
    user = re.match(r"[^/]*@|[^/]*//(?:[^/]*|[^/]*:.*)@", before)
    return bool(user or _PARAMETER.search(address))


@cache
def secret_name(name: str) -> bool:
    """Whether what has this name is a secret."""
    return _FULL_NAME.fullmatch(name) is not None


def _environment() -> list[str]:
    """The values of environment variables that are secrets by their name, also as they stand in
    addresses and in quotes; longest first."""
    found = set[str]()
    for name, value in os.environ.items():
        place = _PLACE.search(name) and os.path.isabs(value)
        if secret_name(name) and len(value) >= _SHORTEST and not place:
            found |= {value, quote(value, ""), quote_plus(value), repr(value)[1:-1]}
            found.add(json.dumps(value)[1:-1])
    return sorted(found, key=len, reverse=True)

"""YAML from anybody: read safely, within limits of size, depth and numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from clsearch.errors import InputError

MAX_BYTES, MAX_NODES, MAX_DEPTH, MAX_DIGITS = 1_000_000, 100_000, 32, 400
"""Bytes, values, levels, and characters of a number."""
MAX_KEYS = 4096
"""Of a mapping, with those it merges: some numbers take time by the square of their count."""
_PLAIN, _MERGE = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"), "tag:yaml.org,2002:merge"


def read_yaml(path: Path, field: str) -> Any:
    """What a YAML file says, within limits of size, depth and numbers; raises `InputError` under
    `field`."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(field, str(path), "a readable YAML file", str(error)) from error
    return parse_yaml(raw, str(path), field)


class _TooManyError(Exception):
    """YAML with more values than are read."""


class _Loader(yaml.SafeLoader):
    """Gives up at the first value too many: reading all that 1 MB can hold takes many seconds."""

    count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooManyError
        return super().compose_node(parent, index)


def parse_yaml(raw: bytes, name: str, field: str) -> Any:
    """What YAML says, within the same limits; raises `InputError` under `field`, with `name`."""
    if len(raw) > MAX_BYTES:
        raise InputError(field, name, "YAML of at most 1 MB")
    try:
        loader = _Loader(raw.decode("utf-8"))
        root = loader.get_single_node()
        _check_nodes(root, name, field)
        return None if root is None else loader.construct_document(root)
    except _TooManyError as error:
        raise _beyond(field, name) from error
    except RecursionError as error:
        raise InputError(field, name, "YAML that is not nested this deep") from error
    except (yaml.YAMLError, ValueError, AttributeError, OverflowError, LookupError) as error:
        raise InputError(field, name, "valid YAML", _yaml_said(error)) from error


def _yaml_said(error: Exception) -> str:
    """What the reader said, and where; without what stands there, which may be a secret."""
    said, mark = str(error), None
    if isinstance(error, yaml.MarkedYAMLError):
        said, mark = str(error.problem or error.context), error.problem_mark or error.context_mark
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    said = re.sub(r"'.*'|\".*\"", "…", " ".join(said.split()))
    return f"The reader said: {said}{where}"


def _check_nodes(root: yaml.Node | None, path: str, field: str) -> None:
    """Refuses a key that stands twice, a number of more than `MAX_DIGITS` characters (YAML counts
    in sixties where there are colons, and takes minutes for a long one), a list or a mapping with a
    tag (which makes a set or a number of it), a mapping of more than `MAX_KEYS`, and nodes that
    with their aliases unfolded would be more than `MAX_NODES` or deeper than `MAX_DEPTH`."""
    sizes: dict[int, tuple[float, float, float]] = {}

    def size(node: yaml.Node | None) -> tuple[float, float, float]:
        """How many nodes, how deep, and how many keys where it is merged."""
        if id(node) not in sizes:
            # What an alias to a node around it unfolds to.
            sizes[id(node)] = math.inf, math.inf, math.inf
            children: list[yaml.Node] = []
            merged: list[yaml.Node] = []
            own = 0
            if isinstance(node, yaml.ScalarNode):
                if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
                    step = f"It begins in line {node.start_mark.line + 1} of {path}."
                    allowed = f"numbers of at most {MAX_DIGITS} characters"
                    raise InputError(field, node.value, allowed, step)
            elif node is not None and node.tag not in _PLAIN:
                step = f"It begins in line {node.start_mark.line + 1} of {path}."
                raise InputError(field, node.tag, "lists and mappings without a tag", step)
            elif isinstance(node, yaml.SequenceNode):
                children = merged = node.value
            elif isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
                merged = [value for key, value in node.value if key.tag == _MERGE]
                own = len(node.value) - len(merged)
                names = Counter(k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode))
                for key in (name for name, count in names.items() if count > 1):
                    line = node.start_mark.line + 1
                    step = f"It stands twice in the mapping that begins in line {line} of {path}."
                    raise InputError(field, key, "each key once", step)
            below = [size(child) for child in children]
            nodes = 1 + sum(count for count, _, _ in below)
            keys = own + sum(size(child)[2] for child in merged)
            if isinstance(node, yaml.MappingNode) and keys > MAX_KEYS:
                step = f"One of more begins in line {node.start_mark.line + 1}."
                raise InputError(field, path, f"mappings of at most {MAX_KEYS} keys", step)
            sizes[id(node)] = nodes, 1 + max((depth for _, depth, _ in below), default=0), keys
        return sizes[id(node)]

    nodes, depth, _ = size(root)
    if nodes > MAX_NODES or depth > MAX_DEPTH:
        raise _beyond(field, path)


def _beyond(field: str, path: str) -> InputError:
    allowed = f"YAML of at most {MAX_NODES} values, nested at most {MAX_DEPTH} deep"
    return InputError(field, path, f"{allowed}, aliases unfolded")

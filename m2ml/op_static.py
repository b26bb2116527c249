"""What the static arguments of an op must be: what their annotations say."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: What an annotation is called in an error, and whether a value is one.
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("True or False", lambda x: isinstance(x, (bool, np.bool_))),
    "int": ("a whole number", lambda x: isinstance(x, numbers.Integral) and not isinstance(x, bool)),
    "float": ("a number", lambda x: isinstance(x, numbers.Real) and not isinstance(x, bool) and bool(x == x)),
    "str": ("a string", lambda x: isinstance(x, str)),
    "None": ("None", lambda x: x is None),
}


def why_not(annotation: Any, value: Any) -> str:
    """What ``value`` must be where ``annotation`` does not allow it; nothing where it does or says nothing of that.

    >>> why_not("int | None", 2.5)
    'a whole number or None'
    """
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    kinds = [_KINDS.get(part.strip()) for part in text.split("|")]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds) or any(fits(value) for _, fits in known):
        return ""
    return " or ".join(said for said, _ in known)

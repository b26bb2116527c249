"""Chat templates: Jinja that came with a model, run where it can touch nothing."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from m2ml.models.settings import CheckpointError

#: A template that is longer than any known one by far.
MOST_CHARACTERS = 1 << 20


def rendered(source: str, messages: Sequence[Mapping[str, Any]], *, reply: bool, special: Mapping[str, str]) -> str:
    """The text of a conversation. Raises `CheckpointError` where the template is broken or refuses the messages."""
    import jinja2

    try:
        return _template(source).render(
            messages=[dict(message) for message in messages], add_generation_prompt=reply, **special
        )
    except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError, RecursionError) as error:
        raise CheckpointError(f"the model's chat template failed: {' '.join(str(error).split())[:200]}") from error


@functools.lru_cache(maxsize=8)
def _template(source: str) -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(source) > MOST_CHARACTERS:
        raise CheckpointError(f"the model's chat template has {len(source):,} characters, too many to be one")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _json
    return environment.from_string(source)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)

"""Write on from a prompt, or from several at once, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import m2ml
from m2ml.errors import M2mlError
from m2ml.generation.garbage import collected_later
from m2ml.generation.language_model import LanguageModel
from m2ml.generation.sampling import Bits, Sampling
from m2ml.generation.session import Session
from m2ml.generation.statistics import Statistics
from m2ml.generation.stopping import StopStrings
from m2ml.models.tokenizer import TextStream

#: A text, or its tokens.
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Piece:
    """One token of prompt ``row`` and the text it added; ``ended`` says why it is the last, else "".

    ``"end"``: the model ended; ``"stop"``: a stop string; ``"length"``: as many as asked for; ``"context"``: as many as
    the model was made for.
    """

    row: int
    token: int
    text: str
    ended: str = ""


class Generation:
    """The pieces of a generation, made as they are asked for; ``texts`` and ``tokens`` are what has come so far."""

    def __init__(self, pieces: Iterator[Piece], rows: int, statistics: Statistics) -> None:
        self._pieces, self.statistics = pieces, statistics
        self.texts = [""] * rows
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.ended = [""] * rows

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces:
            self.texts[piece.row] += piece.text
            self.tokens[piece.row].append(piece.token)
            self.ended[piece.row] = piece.ended
            yield piece

    def text(self) -> str:
        """The whole text of the first row, once it has come."""
        for _ in self:
            pass
        return self.texts[0]


def generate(
    model: LanguageModel,
    prompt: Prompt | Sequence[Prompt],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    cache_bits: int | None = None,
    session: Session | None = None,
) -> Generation:
    """Write on from ``prompt``: a text, a list of tokens, or a list of either, which may be of unequal lengths.

    Gives an iterator of `Piece`, one for each token of each prompt. ``temperature`` 0 takes the likeliest token; equal
    seeds give equal tokens on every backend as long as the logits agree up to rounding and no two tokens tie within it:
    then backends may take different ones, and go on from there. ``stop`` are texts at which to end. ``cache_bits=8``
    keeps keys and values in 8 bits. With ``session``, what it has read already is not read again.

    Raises `M2mlError` for a prompt without tokens, one that is longer than the model was made for, and settings outside
    their range.

    >>> from m2ml.generation import generate, load
    >>> from m2ml.data import smollm2
    >>> model = load(smollm2())  # doctest: +SKIP
    >>> generate(model, "The capital of France is", max_tokens=2).text()  # doctest: +SKIP
    ' Paris.'
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    if max_tokens < 1:
        raise M2mlError(f"max_tokens is {max_tokens}; it must be at least 1")
    rows = [_tokens(model, one) for one in _prompts(prompt)]
    if not rows:
        raise M2mlError("there is no prompt; give at least one")
    statistics = Statistics(model.backend, sum(map(len, rows)))
    if session is None:
        session = Session(model, len(rows), cache_bits=cache_bits, room=max(map(len, rows)) + min(max_tokens, 256))
    new = _unread(session, rows)
    bits = Bits(sampling, seed, len(rows))
    writers = [_Row(model, i, len(rows[i]), max_tokens, stop) for i in range(len(rows))]
    return Generation(_pieces(session, new, writers, sampling, bits, statistics), len(rows), statistics)


def _prompts(prompt: Any) -> list[Prompt]:
    """One prompt or several as a list of them."""
    if isinstance(prompt, str) or (len(prompt) and not isinstance(prompt[0], str | Sequence)):
        return [prompt]
    return list(prompt)


def _tokens(model: LanguageModel, prompt: Prompt) -> list[int]:
    return model.words.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]


def _unread(session: Session, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the session has not read yet; where it read something else, it forgets from there on."""
    if len(rows) != len(session.tokens):
        raise M2mlError(f"the session has {len(session.tokens)} rows, but there are {len(rows)} prompts")
    if not session.longest:
        return [list(row) for row in rows]
    shared = min(map(_shared, rows, session.tokens))
    shared = min(shared, min(map(len, rows)) - 1)  # the last token is read again, for what comes after it
    if any(len(held) != shared for held in session.tokens) and not session.rewind(shared):
        raise M2mlError("the session has read something else, which a model with windows cannot forget; make a new one")
    return [list(row[shared:]) for row in rows]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class _Row:
    """What has been written of one prompt, and whether it goes on."""

    def __init__(self, model: LanguageModel, row: int, read: int, most: int, stop: Sequence[str]) -> None:
        words = model.tokenizer
        self.row, self.ended = row, ""
        self._ends = words.ends if words else frozenset()
        self._stream: TextStream | None = words.stream() if words else None
        self._stops = StopStrings(stop)
        self._left, self._room = most, model.config.context - read

    def add(self, token: int) -> Piece:
        self._left, self._room = self._left - 1, self._room - 1
        text = ""
        if token in self._ends:
            self.ended = "end"
        else:
            text, stopped = self._stops(self._stream(token) if self._stream else "")
            self.ended = "stop" if stopped else "length" if not self._left else "context" if self._room <= 0 else ""
        if self.ended and self.ended != "stop":
            text += self._stops.rest()
        return Piece(self.row, token, text, self.ended)


def _pieces(
    session: Session,
    new: Sequence[Sequence[int]],
    rows: Sequence[_Row],
    sampling: Sampling,
    bits: Bits,
    statistics: Statistics,
) -> Iterator[Piece]:
    """Each step is dispatched before the token of the one before is read, so that neither waits for the other.

    But the first, whose program may have to be compiled: the first token is there before it.
    """

    def step(tokens: Any) -> Any:
        session.reserve(session.longest + 1)
        return session.step(tokens, sampling, bits.next())

    def added(tokens: Sequence[int]) -> list[Piece]:
        pieces = [row.add(tokens[row.row]) for row in rows if not row.ended]
        statistics.add(len(pieces))
        return pieces

    tokens, known = _first(session, new, sampling, bits)
    yield from added(known)
    if all(row.ended for row in rows):
        return
    tokens = step(tokens)
    session.wrote(known)
    while True:
        following = step(tokens)
        known = _known(tokens)
        session.wrote(known)
        yield from added(known)
        if all(row.ended for row in rows):
            return
        tokens = following


@collected_later()
def _first(session: Session, new: Sequence[Sequence[int]], sampling: Sampling, bits: Bits) -> tuple[Any, list[int]]:
    session.read(new)
    tokens = session.choose(sampling, bits.next())
    return tokens, _known(tokens)


def _known(tokens: Any) -> list[int]:
    return [int(token) for token in m2ml.get(tokens)]

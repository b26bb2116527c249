"""A conversation with a model: each turn reads only what is new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from m2ml.generation.generate import Generation, Piece, generate
from m2ml.generation.language_model import LanguageModel
from m2ml.generation.session import Session


class Conversation:
    """Turns of a user and of ``model``, whose chat template puts them into words."""

    def __init__(self, model: LanguageModel, *, system: str | None = None, cache_bits: int | None = None) -> None:
        self.model, self._system, self._bits = model, system, cache_bits
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was said."""
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self._session: Session | None = None

    def ask(self, question: str, **asked: Any) -> Answer:
        """The model's answer, as it comes; ``asked`` are arguments of `generate`."""
        messages = [*self.messages, {"role": "user", "content": question}]
        tokens = self.model.words.encode_conversation(messages)
        if self._session is None or self._has_windows():
            self._session = Session(self.model, cache_bits=self._bits, room=len(tokens) + 256)
        return Answer(self, messages, generate(self.model, tokens, session=self._session, **asked))

    def _has_windows(self) -> bool:
        """Rings cannot forget the step that was made ahead: such a model reads the conversation again."""
        return any(block.window is not None for block in self.model.config.blocks)


class Answer:
    """The pieces of an answer; when they have all come, it is part of the conversation."""

    def __init__(self, conversation: Conversation, messages: list[dict[str, str]], generation: Generation) -> None:
        self._conversation, self._messages, self._generation = conversation, messages, generation
        self.statistics = generation.statistics

    def __iter__(self) -> Iterator[Piece]:
        yield from self._generation
        answer = {"role": "assistant", "content": self._generation.texts[0]}
        self._conversation.messages = [*self._messages, answer]

    def text(self) -> str:
        """The whole answer."""
        return "".join(piece.text for piece in self)

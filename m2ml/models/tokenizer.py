"""Text to tokens and back, and conversations as the model was taught to read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2ml.errors import in_one_line
from m2ml.models.settings import CheckpointError

if TYPE_CHECKING:
    import tokenizers

#: A conversation: ``{"role": "user", "content": "..."}`` each.
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokenizer of a model. ``ends`` are the tokens at which an answer is over; ``begin`` stands before a text.

    ``template`` is the Jinja template of conversations, None where the model knows none.
    """

    rust: tokenizers.Tokenizer
    ends: frozenset[int] = frozenset()
    begin: int | None = None
    template: str | None = None
    special: Mapping[str, str] | None = None

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """The tokens of a text; ``begin`` adds what the model expects before it."""
        try:
            ids: list[int] = self.rust.encode(text, add_special_tokens=begin).ids
        except Exception as error:  # the Rust library raises Exception itself
            said = in_one_line(error)
            raise CheckpointError(f"the tokenizer does not take {text[:40]!r}: {said[:160]}") from error
        if begin and self.begin is not None and ids[:1] != [self.begin]:
            return [self.begin, *ids]
        return ids

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens; ``special`` keeps those that are no text, such as the end of an answer."""
        return str(self.rust.decode([int(token) for token in tokens], skip_special_tokens=not special))

    def stream(self) -> TextStream:
        """Decodes tokens one at a time."""
        return TextStream(self)

    def conversation(self, messages: Messages, *, reply: bool = True) -> str:
        """``messages`` as the text the model was taught; ``reply`` ends it where the model's answer begins."""
        from m2ml.models.chat_template import rendered

        if self.template is None:
            raise CheckpointError("this model has no chat template; it continues a text (m2ml generate)")
        return rendered(self.template, messages, reply=reply, special=self.special or {})

    def encode_conversation(self, messages: Messages) -> list[int]:
        """The tokens of `conversation`; the template writes what stands at the beginning itself."""
        return self.encode(self.conversation(messages), begin=False)


class TextStream:
    """Pieces of text as tokens come; a character of several tokens comes with the last of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._rust, self._stream = tokenizer.rust, DecodeStream(skip_special_tokens=True)

    def __call__(self, token: int) -> str:
        return self._stream.step(self._rust, int(token)) or ""


def from_folder(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder, None where it has none. Raises `CheckpointError` for a damaged one."""
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        rust = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises Exception itself
        said = in_one_line(error)
        raise CheckpointError(f"{path} is no tokenizer that m2ml reads: {said[:160]}") from error
    rust.no_padding()
    rust.no_truncation()
    more = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    special = {key: _text(more.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    known = {key: value for key, value in special.items() if value is not None}
    ends = [rust.token_to_id(known["eos_token"])] if "eos_token" in known else []
    for given in (settings.get("eos_token_id"), generation.get("eos_token_id")):
        ends += given if isinstance(given, list) else [given]
    begin = rust.token_to_id(known["bos_token"]) if more.get("add_bos_token") and "bos_token" in known else None
    whole = frozenset(end for end in ends if isinstance(end, int) and not isinstance(end, bool))
    return Tokenizer(rust, whole, begin, _template(folder, more), known)


def _optional_json(path: Path) -> dict[str, Any]:
    from m2ml.models.checkpoints.folder import read_json

    return read_json(path) if path.exists() else {}


def _text(token: Any) -> str | None:
    """A special token, which is written as a string or as an object with its content."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default chat template: a file of its own, or in the configuration, alone or among named ones."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8", errors="replace")
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {str(item.get("name")): item.get("template") for item in given if isinstance(item, Mapping)}
        given = named.get("default", next(iter(named.values()), None))
    return given if isinstance(given, str) else None


def saved(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that `from_folder` and transformers read."""
    tokenizer.rust.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **(tokenizer.special or {})}
    config["clean_up_tokenization_spaces"] = False
    if tokenizer.begin is not None:
        config["add_bos_token"] = True
    if tokenizer.template is not None:
        config["chat_template"] = tokenizer.template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    generation = {"eos_token_id": sorted(tokenizer.ends)}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")

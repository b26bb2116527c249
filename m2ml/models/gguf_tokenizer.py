"""The tokenizer inside a GGUF file, as one of the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from m2ml.errors import in_one_line
from m2ml.models.checkpoints.gguf_header import Texts
from m2ml.models.settings import CheckpointError
from m2ml.models.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6

#: Splits of text before byte-level merges (llama.cpp's names of them); in all of them, bytes come last.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def from_gguf(metadata: Mapping[str, Any], where: str) -> Tokenizer | None:
    """The tokenizer that ``metadata`` describes, None where it has none. Raises `CheckpointError` for unknown kinds."""
    import tokenizers

    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return None
    words = _listed(metadata, "tokens", str, where)
    try:
        if kind == "gpt2":
            rust = _byte_level(metadata, words, where)
        elif kind == "llama":
            rust = _sentence_piece(metadata, words, where)
        else:
            raise CheckpointError(f"{where} has a tokenizer of kind {str(kind)[:40]!r}; m2ml reads gpt2 and llama")
        types = metadata.get("tokenizer.ggml.token_type") or []
        special = [w for w, t in zip(words, types, strict=False) if t == _CONTROL]
        rust.add_special_tokens([tokenizers.AddedToken(w, special=True, normalized=False) for w in special])
        own = [w for w, t in zip(words, types, strict=False) if t == _USER_DEFINED]
        rust.add_tokens([tokenizers.AddedToken(w, normalized=False) for w in own])
    except CheckpointError:
        raise
    except Exception as error:  # the Rust library raises Exception itself
        said = in_one_line(error)
        raise CheckpointError(f"{where} holds a tokenizer that does not work: {said[:160]}") from error
    return _complete(metadata, rust, words, kind)


def _complete(metadata: Mapping[str, Any], rust: Any, words: Sequence[str], kind: str) -> Tokenizer:
    def token(name: str) -> int | None:
        found = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return found if isinstance(found, int) and 0 <= found < len(words) else None

    begin, end, turn = token("bos"), token("eos"), token("eot")
    added = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")
    names = {"bos_token": begin, "eos_token": end, "pad_token": token("padding"), "unk_token": token("unknown")}
    special = {name: words[i] for name, i in names.items() if i is not None}
    ends = frozenset(i for i in (end, turn) if i is not None)
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(rust, ends, begin if added else None, template if isinstance(template, str) else None, special)


def _listed(metadata: Mapping[str, Any], name: str, kind: type, where: str) -> list[Any]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if isinstance(found, Texts) and kind is str:
        return found.listed()
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise CheckpointError(f"{where} has no tokenizer.ggml.{name}, which its tokenizer needs")
    return found


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return dict(zip(words, range(len(words)), strict=True))


def _byte_level(metadata: Mapping[str, Any], words: Sequence[str], where: str) -> Any:
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models

    merges = _listed(metadata, "merges", str, where)
    if any(merge.count(" ") != 1 for merge in merges):
        raise CheckpointError(f"{where} has merges that are not of two parts")
    parts = " ".join(merges).split(" ") if merges else []
    rust = Rust(models.BPE(vocab=_numbered(words), merges=list(zip(parts[::2], parts[1::2], strict=True))))
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise CheckpointError(f"{where} splits text as {str(name)[:40]!r} does; m2ml knows {known}")
    rust.pre_tokenizer = _SPLITS[name]()
    rust.decoder = decoders.ByteLevel()
    if name == "qwen2":
        from tokenizers import normalizers

        rust.normalizer = normalizers.NFC()
    return rust


def _gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_first() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _by(pattern: str) -> Callable[[], Any]:
    def make() -> Any:
        from tokenizers import Regex, pre_tokenizers

        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return make


_SPLITS: Mapping[str, Callable[[], Any]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "smollm": _digits_first,
    "llama-bpe": _by(_LLAMA3),
    "qwen2": _by(_QWEN2),
}


def _sentence_piece(metadata: Mapping[str, Any], words: Sequence[str], where: str) -> Any:
    """SentencePiece's merges are the pairs of words that make a word, those of the best word first."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, normalizers

    scores = _listed(metadata, "scores", float, where)
    known = _numbered(words)
    merges = []
    for word, score in zip(words, scores, strict=False):
        parts = [(word[:i], word[i:]) for i in range(1, len(word)) if word[:i] in known and word[i:] in known]
        parts.sort(key=lambda pair: (known[pair[0]], known[pair[1]]))
        merges += [(score, pair) for pair in parts]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    rust = Rust(
        models.BPE(
            vocab=known,
            merges=[pair for _, pair in merges],
            unk_token=words[unknown] if isinstance(unknown, int) and 0 <= unknown < len(words) else None,
            fuse_unk=True,
            byte_fallback=_BYTE in (metadata.get("tokenizer.ggml.token_type") or []),
        )
    )
    spaced = metadata.get("tokenizer.ggml.add_space_prefix", True)
    first = [normalizers.Prepend("▁")] if spaced else []
    rust.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    cut = [decoders.Strip(" ", left=1)] if spaced else []
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *cut])
    return rust

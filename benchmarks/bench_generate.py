"""SmolLM2-135M, 4 bits: reading 512 tokens and writing, against llama.cpp on the CPU and mlx-lm on MLX, in one run.

Needs ``pip install llama-cpp-python mlx-lm``; a peer that is not installed is left out and named. MLX's CPU build is
usable with ``LD_PRELOAD=libopenblas.so.0``.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import numpy as np
from harness import Ratio, compare, show, with_openblas

import m2ml
from m2ml.data import smollm2
from m2ml.generation import LanguageModel, Sampling, Session, load
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of
from m2ml.models.saving import convert

PROMPT, WRITTEN, THREADS = 512, 32, 2
TOKENS = np.random.default_rng(0).integers(5, 40_000, PROMPT).tolist()


def ours(model: LanguageModel) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Read a prompt; write ``WRITTEN`` tokens after a short one, each step dispatched before the last is read."""
    room = PROMPT + WRITTEN + 1

    def read() -> Any:
        session = Session(model, room=room)
        session.read([TOKENS])
        return m2ml.get(session.choose(Sampling(), None))

    session = Session(model, room=room)
    session.read([TOKENS[:16]])
    token = session.choose(Sampling(), None)

    def write() -> None:
        nonlocal token
        session.rewind(16)
        for _ in range(WRITTEN):
            following = session.step(token, Sampling(), None)
            m2ml.get(token)
            session.wrote([0])
            token = following

    return read, write


def llama_cpp(path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=1024, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
    )

    def read() -> None:
        model.reset()
        model.eval(TOKENS)

    def write() -> None:
        model.reset()
        model.eval(TOKENS[:16])
        for _ in range(WRITTEN):
            model.eval([int(np.argmax(model._scores[-1])) if model._scores.size else 5])

    return read, write


def mlx_lm(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load as load_mlx

    model = load_mlx(str(folder))[0]

    def steps(prompt: Sequence[int], count: int) -> None:
        for _, _ in zip(range(count), generate_step(mx.array(prompt), model, max_tokens=count), strict=False):
            pass

    return lambda: steps(TOKENS, 1), lambda: steps(TOKENS[:16], WRITTEN)


def main() -> None:
    blas = with_openblas()
    path, ratios, missing = smollm2(), list[Ratio](), list[str]()
    for backend, peer, make in (("cpu", "llama.cpp", llama_cpp), ("mlx", "mlx-lm", mlx_lm)):
        if backend not in m2ml.backends():
            continue
        read, write = ours(load(path, backend=backend))
        if importlib.util.find_spec(make.__name__) is None:
            missing.append(peer)
            alone(backend, read, write)
            continue
        with tempfile.TemporaryDirectory() as folder:
            where = path
            if backend == "mlx":
                from m2ml.generation.language_model import tokenizer_of
                from m2ml.models.tokenizer import saved

                checkpoint, where = open_checkpoint(path), Path(folder) / "model"
                words = tokenizer_of(checkpoint)
                assert words
                convert(checkpoint, config_of(checkpoint), where, extra=functools.partial(saved, words))
            their_read, their_write = make(where)
            limits = (1 / 3, 1 / 1.5) if backend == "cpu" else (1.0, 1.0)
            what = f"{backend}: {{}}"
            ratios += [
                compare(
                    what.format("read 512 tokens"), read, their_read, peer_name=peer, limit=limits[0], pairs=5, warmup=1
                ),
                compare(
                    what.format("write 32 tokens"),
                    write,
                    their_write,
                    peer_name=peer,
                    limit=limits[1],
                    pairs=5,
                    warmup=1,
                ),
            ]
    if ratios:
        show(f"SmolLM2-135M, 4 bits ({blas})", ratios)
    for peer in missing:
        print(f"not measured against {peer}: it is not installed", file=sys.stderr)


def alone(backend: str, read: Callable[[], Any], write: Callable[[], Any]) -> None:
    for name, run, count in (("read", read, PROMPT), ("write", write, WRITTEN)):
        run()
        best = min(_seconds(run) for _ in range(3))
        print(f"{backend}: {name} {count / best:,.1f} tokens/s")


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

"""SmolLM2-135M, 4 bits: reading a prompt and writing, against llama.cpp on the CPU and mlx-lm on MLX, in one run.

``bench_generate.py [cpu] [mlx] [host]``: all three unless named. ``host`` is the time that Python takes to dispatch one
step of a model of 32 layers, so small that MLX's own work hides nothing, against mlx-lm's. Needs
``pip install llama-cpp-python mlx-lm``; a peer that is not installed is named. MLX's CPU build is usable with
``LD_PRELOAD=libopenblas.so.0``, and reads a shorter prompt for mlx-lm's sake.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if os.environ.get("M2ML_MLX_COMPILE") != "1":
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import numpy as np
from harness import Ratio, compare, show, with_openblas

import m2ml
from m2ml.data import smollm2
from m2ml.generation import LanguageModel, Sampling, Session, load
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of
from m2ml.models.saving import convert

WRITTEN, THREADS, SHORT = 32, 2, 16
#: Tokens to read, and the most that ours may take of the peer's time for reading and for writing.
PROMPT = {"cpu": 512, "mlx": 64}
LIMITS = {"cpu": (1 / 3, 1 / 1.5), "mlx": (1.0, 1.0)}
TOKENS = np.random.default_rng(0).integers(5, 40_000, max(PROMPT.values())).tolist()

#: Reads a prompt of so many tokens; reads `SHORT` tokens and writes `WRITTEN`.
Work = tuple[Callable[[int], Any], Callable[[], Any]]


def ours(model: LanguageModel) -> Work:
    def read(count: int) -> Any:
        session = Session(model, room=count + 1)
        session.read([TOKENS[:count]])
        return m2ml.get(session.choose(Sampling(), None))

    def write() -> None:
        """Each step is dispatched before the last is read."""
        session = Session(model, room=SHORT + WRITTEN + 1)
        session.read([TOKENS[:SHORT]])
        token = session.choose(Sampling(), None)
        for _ in range(WRITTEN):
            following = session.step(token, Sampling(), None)
            session.wrote(m2ml.get(token))
            token = following

    return read, write


def llama_cpp(path: Path) -> Work:
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=1024, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
    )

    def likeliest() -> int:
        return int(np.argmax(np.ctypeslib.as_array(model._ctx.get_logits(), shape=(model.n_vocab(),))))

    def read(count: int) -> int:
        model.reset()
        model.eval(TOKENS[:count])
        return likeliest()

    def write() -> None:
        model.reset()
        model.eval(TOKENS[:SHORT])
        for _ in range(WRITTEN):
            model.eval([likeliest()])

    return read, write


def mlx_lm(path: Path) -> Work:
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load as load_mlx

    with tempfile.TemporaryDirectory() as folder:
        model = load_mlx(str(as_folder(path, Path(folder) / "model")))[0]

    def steps(prompt: Sequence[int], count: int) -> None:
        for _ in generate_step(mx.array(prompt), model, max_tokens=count):
            pass

    return lambda count: steps(TOKENS[:count], 1), lambda: steps(TOKENS[:SHORT], WRITTEN)


def as_folder(path: Path, target: Path) -> Path:
    """The model converted for mlx-lm, with the same packed weights."""
    from m2ml.generation.language_model import tokenizer_of
    from m2ml.models.tokenizer import saved

    checkpoint = open_checkpoint(path)
    words = tokenizer_of(checkpoint)
    assert words
    convert(checkpoint, config_of(checkpoint), target, extra=functools.partial(saved, words))
    return target


def speeds(backend: str, peer: str, make: Callable[[Path], Work]) -> list[Ratio]:
    path, count = smollm2(), PROMPT[backend]
    (read, write), (their_read, their_write) = ours(load(path, backend=backend)), make(path)
    timed = functools.partial(compare, peer_name=peer, warmup=1)
    return [
        timed(
            f"{backend}: read {count} tokens",
            functools.partial(read, count),
            functools.partial(their_read, count),
            limit=LIMITS[backend][0],
            pairs=5 if backend == "cpu" else 2,
        ),
        timed(
            f"{backend}: read {SHORT}, write {WRITTEN}",
            write,
            their_write,
            limit=LIMITS[backend][1],
            pairs=9 if backend == "cpu" else 3,
        ),
    ]


LAYERS, LIMIT_OF_HOST = 32, 1 / 5
_TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def host() -> list[Ratio]:
    """Processor seconds of the thread that dispatches a step; it is waited for outside of them."""
    mine, theirs = our_host(), their_host()
    for _ in range(5):
        mine(), theirs()
    pairs = [(mine(), theirs()) for _ in range(50)]
    ratios = sorted(a / b for a, b in pairs)
    a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
    how = "compiled" if os.environ.get("M2ML_MLX_COMPILE") == "1" else "not compiled"
    what = f"mlx ({how}): dispatch a step of {LAYERS} layers"
    return [Ratio(what, "mlx-lm", a, b, statistics.median(ratios), LIMIT_OF_HOST, ratios[12], ratios[37])]


def our_host() -> Callable[[], float]:
    import jax

    from m2ml.models import Decoder, functional
    from m2ml.models.architectures import decoder_config

    config = decoder_config(_TINY, "a tiny llama")
    params = m2ml.put(functional(Decoder, config).init(jax.random.key(0)), "mlx")
    session = Session(LanguageModel("tiny", config, params, None, "mlx"), room=200)
    session.read([TOKENS_OF_TINY])
    token = session.choose(Sampling(), None)

    def step() -> float:
        nonlocal token
        began = time.thread_time()
        following = session.step(token, Sampling(), None)
        took = time.thread_time() - began
        m2ml.get(following)
        session.wrote([0])
        token = following
        return took

    return step


TOKENS_OF_TINY = [1, 2, 3]


def their_host() -> Callable[[], float]:
    """What `mlx_lm.generate.generate_step` does between two tokens."""
    import mlx.core as mx
    from mlx_lm.models import llama
    from mlx_lm.models.cache import make_prompt_cache

    model = llama.Model(llama.ModelArgs.from_dict(_TINY))
    mx.eval(model.parameters())
    cache = make_prompt_cache(model)
    token = mx.argmax(model(mx.array([TOKENS_OF_TINY]), cache=cache)[:, -1, :], axis=-1)
    mx.eval(token)

    def step() -> float:
        nonlocal token
        began = time.thread_time()
        logits = model(token[:, None], cache=cache)[:, -1, :]
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        following = mx.argmax(logprobs, axis=-1)
        mx.async_eval(following, logprobs)
        took = time.thread_time() - began
        mx.eval(following)
        token = following
        return took

    return step


def main() -> None:
    blas = with_openblas()
    asked = [a for a in sys.argv[1:] if a in ("cpu", "mlx", "host")] or ["cpu", "mlx", "host"]
    parts: dict[str, tuple[str, Callable[[], list[Ratio]]]] = {
        "cpu": ("llama_cpp", lambda: speeds("cpu", "llama.cpp", llama_cpp)),
        "mlx": ("mlx_lm", lambda: speeds("mlx", "mlx-lm", mlx_lm)),
        "host": ("mlx_lm", host),
    }
    ratios: list[Ratio] = []
    for name in asked:
        module, run = parts[name]
        if importlib.util.find_spec(module) is None:
            print(f"{name} was not measured: {module} is not installed", file=sys.stderr)
        else:
            ratios += run()
    show(f"SmolLM2-135M, 4 bits ({blas})", ratios)


if __name__ == "__main__":
    main()

"""What it takes to have a language model: seconds to the first token, and memory, each in a process of its own.

Against llama.cpp on the same SmolLM2-135M (``pip install llama-cpp-python``): the time from a fresh interpreter to the
first token, kernels and compiled programs warm, and the peak of memory of reading 512 tokens and writing 32. Then the
peak of memory that loading adds to a process that has the libraries, relative to the weights as they are held: of
SmolLM2 packed, with its tokenizer and without, and of a folder of ``SIZE`` bytes of float32 made for the purpose.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from m2ml.data import smollm2

SIZE, RUNS = 512 << 20, 5

#: Each prints one JSON object. ``first`` is in seconds since the interpreter began, ``grown`` and ``peak`` in bytes.
FIRST_TOKEN_OF_OURS = """
from m2ml.cache import keep_compiled
from m2ml.generation import generate, load
keep_compiled()
imported = since()
for piece in generate(load(sys.argv[1], backend="cpu"), "The capital of France is", max_tokens=1):
    print(json.dumps({"first": since(), "imported": imported, "token": piece.token}))
"""
FIRST_TOKEN_OF_LLAMA = """
import llama_cpp, numpy as np
imported = since()
model = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_threads=2, n_threads_batch=2, verbose=False)
model.eval(model.tokenize(b"The capital of France is", add_bos=False))
token = int(np.argmax(np.ctypeslib.as_array(model._ctx.get_logits(), shape=(model.n_vocab(),))))
print(json.dumps({"first": since(), "imported": imported, "token": token}))
"""
PEAK_OF_OURS = """
from m2ml.generation import Sampling, Session, load
from m2ml.cache import keep_compiled
import m2ml
keep_compiled()
session = Session(load(sys.argv[1], backend="cpu"), room=545)
session.read([list(range(5, 517))])
token = session.choose(Sampling(), None)
for _ in range(32):
    following = session.step(token, Sampling(), None)
    session.wrote(m2ml.get(token))
    token = following
m2ml.wait(token)
print(json.dumps({"peak": peak()}))
"""
PEAK_OF_LLAMA = """
import llama_cpp, numpy as np
model = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_batch=512, n_threads=2, n_threads_batch=2, verbose=False)
model.eval(list(range(5, 517)))
for _ in range(32):
    model.eval([int(np.argmax(np.ctypeslib.as_array(model._ctx.get_logits(), shape=(model.n_vocab(),))))])
print(json.dumps({"peak": peak()}))
"""
GROWTH = """
import dataclasses, gc, jax, m2ml, tokenizers
from m2ml.generation import load
from m2ml.data import smollm2
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of, load_params
path, backend, way = sys.argv[1:]
m2ml.put(1.0, backend)
if way == "warm":  # what is the same for every model is there before, such as what is traced once
    load(smollm2(), backend=backend)
    gc.collect()
checkpoint = open_checkpoint(path)
config = dataclasses.replace(config_of(checkpoint), dtype="float32")
before = now()
params = load_params(checkpoint, config, backend=backend) if way == "weights" else load(path, backend=backend).params
m2ml.wait(params)
held = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"peak": peak(), "before": before, "weights": held}))
"""
COMMON = """
import json, resource, sys, time
began = {began}
def since():
    return time.clock_gettime(time.CLOCK_MONOTONIC) - began
def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(next(x for x in file if x.startswith("VmHWM")).split()[1])
def now():
    with open("/proc/self/status") as file:
        return 1024 * int(next(x for x in file if x.startswith("VmRSS")).split()[1])
"""


def run(code: str, *arguments: object) -> dict[str, float]:
    """What ``code`` prints in a fresh interpreter."""
    import time

    text = COMMON.format(began=time.clock_gettime(time.CLOCK_MONOTONIC)) + code
    said = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": ""},  # modules as pip leaves them
    )
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return found


def seconds(table: Table, path: Path) -> None:
    """In turns, so that what else the machine does meets both."""
    run(FIRST_TOKEN_OF_OURS, path)
    pairs = [(run(FIRST_TOKEN_OF_OURS, path), run(FIRST_TOKEN_OF_LLAMA, path)) for _ in range(RUNS)]
    assert all(a["token"] == b["token"] for a, b in pairs), "they do not write the same"
    for key, what in (("imported", "imports"), ("first", "to the first token")):
        ours, theirs = (statistics.median(one[key] for one in side) for side in zip(*pairs, strict=True))
        add(table, f"seconds, {what}", f"{ours:.2f} s", f"{theirs:.2f} s", f"{ours - theirs:+.2f} s", "")
    after = statistics.median((a["first"] - a["imported"]) - (b["first"] - b["imported"]) for a, b in pairs)
    add(table, "loading and the first token, after imports", "", "", f"{after:+.2f} s", "+1 s", missed=after > 1)


def peaks(table: Table, path: Path) -> None:
    run(PEAK_OF_OURS, path)
    ours, theirs = run(PEAK_OF_OURS, path)["peak"], run(PEAK_OF_LLAMA, path)["peak"]
    said = f"{ours / 1e6:.0f} MB", f"{theirs / 1e6:.0f} MB", f"{ours / theirs:.2f}"
    add(table, "peak memory of the process", *said, "1.3", missed=ours > 1.3 * theirs)


def growths(table: Table, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        large = made(Path(folder))
        for backend in ("cpu", "mlx"):
            if importlib.util.find_spec("mlx") is None and backend == "mlx":
                continue
            for name, file, way in (
                ("SmolLM2", path, "whole"),
                ("SmolLM2, without its tokenizer", path, "weights"),
                ("float32 folder", large, "warm"),
            ):
                found = run(GROWTH, file, backend, way)
                ratio = (found["peak"] - found["before"]) / found["weights"]
                said = (
                    f"{(found['peak'] - found['before']) / 1e6:.0f} MB",
                    f"{found['weights'] / 1e6:.0f} MB of weights",
                )
                what = f"memory that loading adds at its peak: {name} on {backend}"
                add(table, what, *said, f"{ratio:.2f}", "1.1", missed=ratio > 1.1)


def made(folder: Path) -> Path:
    """A llama of `SIZE` bytes of float32, in several files."""
    import numpy as np
    from safetensors.numpy import save_file

    from m2ml.models.architectures import decoder_config
    from m2ml.models.spelling import HUGGING_FACE
    from m2ml.models.weights import sources

    config = {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_hidden_layers": SIZE // 4 // (4 * 1024**2 + 3 * 1024 * 3072),
        "vocab_size": 1024,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = [t for s in sources(decoder_config(config, "made"), HUGGING_FACE["llama"]) for t in s.parts]
    index: dict[str, str] = {}
    for i in range(0, len(names), 40):
        tensors = {t.name: np.full(t.shape, 0.01, np.float32) for t in names[i : i + 40]}
        save_file(tensors, folder / f"model-{i}.safetensors")
        index |= dict.fromkeys(tensors, f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def add(table: Table, what: str, ours: str, theirs: str, ratio: str, limit: str, *, missed: bool = False) -> None:
    table.add_row(what, ours, theirs, ratio, limit, "" if not limit else "MISSED" if missed else "reached")


def main() -> None:
    path, table = smollm2(), Table(title="SmolLM2-135M, 4 bits, on the CPU")
    for column in ("what", "m2ml", "llama.cpp", "", "limit", ""):
        table.add_column(column)
    if importlib.util.find_spec("llama_cpp") is None:
        print("not measured against llama.cpp: it is not installed", file=sys.stderr)
    else:
        seconds(table, path)
        peaks(table, path)
    growths(table, path)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

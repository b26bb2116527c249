"""MiniLM and EfficientNet-Lite0, real weights, on the CPU: against PyTorch and onnxruntime, in one run.

Needs ``pip install torch transformers onnx onnxscript onnxruntime``. The peers compute with the same weights: PyTorch
through transformers' BertModel and the module in torch_efficientnet.py, onnxruntime with what PyTorch exports of them.
All results are compared before anything is timed. ``--only minilm`` or ``--only efficientnet`` runs one of them,
``--batch 1`` one size, and ``--export`` only makes what onnxruntime reads, which is kept in m2ml's cache.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Ratio, compare, show

import m2ml
from m2ml.cache import cache_folder
from m2ml.inference import load
from m2ml.inference.pretrained import efficientnet_lite0, minilm

THREADS, LENGTH = 2, 128

#: m2ml's time over the peer's: faster than PyTorch, and at most 1 / 0.8 of onnxruntime's.
LIMITS = {"PyTorch": 1.0, "onnxruntime": 1 / 0.8}


def exported(name: str, module: torch.nn.Module, inputs: tuple[Any, ...], names: list[str]) -> Callable[..., Any]:
    """onnxruntime on what PyTorch exports of ``module``."""
    import onnxruntime

    path = cache_folder() / "benchmarks" / f"{name}-{len(inputs[0])}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, inputs, str(path), input_names=names, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


class Pooled(torch.nn.Module):
    """The mean over real tokens, of length 1."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1)


def of_minilm(batch: int) -> list[Ratio]:
    import transformers

    folder = minilm()
    model = load(folder, backend="cpu")
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, 30_000, (batch, LENGTH)).astype(np.int32)
    lengths = np.full(batch, LENGTH, np.int32)
    twin = Pooled(transformers.AutoModel.from_pretrained(folder).eval())
    given = tokens.astype(np.int64), (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)

    def ours() -> Any:
        return m2ml.wait(model._vectors(model.params, tokens, lengths, model.pooling))

    return ratios("minilm", f"MiniLM, {batch} x {LENGTH} tokens", ours, twin, given, ["ids", "mask"])


def of_efficientnet(batch: int) -> list[Ratio]:
    from safetensors.torch import load_file
    from torch_efficientnet import EfficientNetLite

    folder = efficientnet_lite0()
    model = load(folder, backend="cpu")
    images = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
    twin = EfficientNetLite(model.config).eval()
    twin.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    twin = twin.to(memory_format=torch.channels_last)
    given = (np.ascontiguousarray(images.transpose(0, 3, 1, 2)),)

    def ours() -> Any:
        return model.logits(images)

    return ratios("efficientnet", f"EfficientNet-Lite0, {batch} x 224 x 224", ours, twin, given, ["images"])


def ratios(
    name: str, what: str, ours: Callable[[], Any], twin: torch.nn.Module, given: tuple[Any, ...], names: list[str]
) -> list[Ratio]:
    tensors = tuple(torch.from_numpy(x) for x in given)
    if len(given) == 1:
        tensors = tuple(x.to(memory_format=torch.channels_last) for x in tensors)

    def in_torch() -> Any:
        with torch.inference_mode():
            return twin(*tensors)

    onnx = exported(name, twin, tuple(torch.from_numpy(x) for x in given), names)
    if "--export" in sys.argv:
        return []
    exact = in_torch().numpy()
    for found in (np.asarray(m2ml.get(ours())), onnx(*given)):
        # Of two float32 engines, which round in other orders: what matters is that both compute the same model.
        assert np.abs(found - exact).max() <= 1e-3 * np.abs(exact).max(), np.abs(found - exact).max()
    pairs = 3 if len(given[0]) > 1 else 11
    peers = {"PyTorch": in_torch, "onnxruntime": lambda: onnx(*given)}
    return [
        compare(what, ours, peer, peer_name=name, limit=LIMITS[name], pairs=pairs, warmup=1, rest=0.2)
        for name, peer in peers.items()
    ]


def option(name: str) -> str:
    """What follows ``name`` on the command line."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else ""


def main() -> None:
    torch.set_num_threads(THREADS)
    only, batch = option("--only"), option("--batch")
    models = {"minilm": of_minilm, "efficientnet": of_efficientnet}
    sizes = [int(batch)] if batch else [1, 32]
    rows = [row for name, run in models.items() if only in ("", name) for size in sizes for row in run(size)]
    show(f"Real models on the CPU, {THREADS} threads", rows)


if __name__ == "__main__":
    main()

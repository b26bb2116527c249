"""Converted and quantised folders: the same tensors again, what MLX reads, and nothing half-written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints
from safetensors.numpy import load_file
from tiny_checkpoints import CASES, tokens
from tiny_models import Tiny, forward

import m2ml
from m2ml.models import saving
from m2ml.models.architectures import decoder_config
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of, load_params
from m2ml.models.saving import Format, convert
from m2ml.models.settings import CheckpointError
from m2ml.models.spelling import HUGGING_FACE
from m2ml.models.weights import sources
from m2ml.ops.quantize import BITS


def converted(folder: Path, target: Path, **how: Any) -> Any:
    checkpoint = open_checkpoint(folder)
    return convert(checkpoint, config_of(checkpoint), target, **how)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    case = tiny_checkpoints.golden()[name]
    folder = tiny_checkpoints.write(tmp_path / "model", case, shards=2)
    converted(folder, tmp_path / "again")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == case["tensors"].keys()
    for tensor, shape in case["tensors"].items():
        np.testing.assert_array_equal(found[tensor], tiny_checkpoints.weight(tensor, tuple(shape)))
    assert json.loads((tmp_path / "again" / "config.json").read_text()).items() >= case["config"].items()


def test_a_large_model_is_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SHARD", 8_000)
    folder = tiny_checkpoints.write(tmp_path / "model", tiny_checkpoints.golden()["qwen3"])
    converted(folder, tmp_path / "again", dtype="bfloat16")
    again = open_checkpoint(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 2
    assert again.settings.get("dtype") == "bfloat16"
    wanted, found = (load_params(c, config_of(c), backend="reference") for c in (open_checkpoint(folder), again))
    import jax

    for a, b in zip(*map(jax.tree.leaves, (wanted, found)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2**-8)


def wide(name: str, folder: Path) -> Path:
    """A tiny model whose rows are whole groups of 32."""
    config = tiny_checkpoints.golden()[name]["config"] | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    if name == "qwen3_moe":
        config |= {"moe_intermediate_size": 32}
    rope = config.get("rope_parameters") or {}
    if "long_factor" in rope:
        config["rope_parameters"] = rope | {key: 2 * rope[key] for key in ("short_factor", "long_factor")}
    shapes = {
        tensor.name: tensor.shape
        for source in sources(decoder_config(config, name), HUGGING_FACE[config["model_type"]])
        for tensor in source.parts
    }
    return tiny_checkpoints.write(folder, {"config": config, "tensors": shapes})


#: Two of the fast suite; every architecture (but gpt2, whose matrices lie the other way), and every other form.
FORMS = [
    ("qwen3", Format(4, 32)),
    ("qwen3_moe", Format(4, 32, "mxfp4")),
    *(pytest.param(name, Format(4, 32), marks=pytest.mark.slow) for name in CASES if name not in ("qwen3", "gpt2")),
    *(pytest.param("qwen3", Format(bits, 32), marks=pytest.mark.slow) for bits in BITS if bits != 4),
    pytest.param("qwen3", Format(8, 64), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_quantised_folders_are_read_as_mlx_reads_them(name: str, form: Format, tmp_path: Path) -> None:
    """Every tensor by mx.dequantize; then the logits of packed weights against those of the numbers they stand for."""
    import mlx.core as mx

    folder = wide(name, tmp_path / "model")
    written = converted(folder, tmp_path / "packed", quantise=form)
    assert 0 < written.largest_change < 0.5
    plain = load_file(folder / "model.safetensors")
    packed: Any = mx.load(str(tmp_path / "packed" / "model.safetensors"))
    quantised = [tensor.removesuffix(".scales") for tensor in packed if tensor.endswith(".scales")]
    assert len(quantised) >= 8
    for stem in quantised:
        parts = (packed.get(f"{stem}.{part}") for part in ("weight", "scales", "biases"))
        numbers = np.array(
            mx.dequantize(*parts, group_size=form.group_size, bits=form.bits, mode=form.mode).astype(mx.float32)
        )
        largest = np.abs(plain[f"{stem}.weight"]).max()
        # A step of a group, which MLX's bfloat16 numbers of mxfp4 keep.
        assert np.abs(numbers - plain[f"{stem}.weight"]).max() <= written.largest_change * largest * 1.001
    checkpoint = open_checkpoint(tmp_path / "packed")
    config = config_of(checkpoint)
    logits = {
        (backend, numbers): np.asarray(
            m2ml.get(
                forward(config).on(backend)(
                    load_params(checkpoint, config, backend=backend, dequantize=numbers), tokens()
                )
            )
        )
        for backend, numbers in (("cpu", False), ("cpu", True), ("mlx", False))
    }
    exact = logits["cpu", True]
    # Rounding of float32 through two layers, and the numbers of mxfp4 once in bfloat16 where an engine unpacks them.
    for found in logits.values():
        np.testing.assert_allclose(found, exact, atol=2**-15 * np.abs(exact).max())


def test_what_cannot_be_quantised_is_said(tmp_path: Path) -> None:
    folder = tiny_checkpoints.write(tmp_path / "model", tiny_checkpoints.golden()["gpt2"])
    with pytest.raises(CheckpointError, match=r"no matrix of .* can be quantised in groups of 32"):
        converted(folder, tmp_path / "packed", quantise=Format(4, 32))
    assert not (tmp_path / "packed").exists()


def test_experts_are_read_as_mlx_stacks_them(tmp_path: Path) -> None:
    import jax
    from safetensors.numpy import save_file

    converted(wide("qwen3_moe", tmp_path / "model"), tmp_path / "packed", quantise=Format(4, 32))

    def params() -> list[Any]:
        checkpoint = open_checkpoint(tmp_path / "packed")
        return jax.tree.leaves(load_params(checkpoint, config_of(checkpoint), backend="reference"))

    each, path = params(), tmp_path / "packed" / "model.safetensors"
    tensors = load_file(path)
    experts: dict[str, dict[int, Any]] = {}
    for name in [name for name in tensors if ".mlp.experts." in name]:
        before, _, after = name.partition("experts.")
        number, _, part = after.partition(".")
        experts.setdefault(f"{before}switch_mlp.{part}", {})[int(number)] = tensors.pop(name)
    assert experts
    save_file(tensors | {name: np.stack([of[i] for i in sorted(of)]) for name, of in experts.items()}, path)
    for a, b in zip(each, params(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_quantised_folder_lacks_nothing(tmp_path: Path) -> None:
    folder = wide("qwen3", tmp_path / "model")
    converted(folder, tmp_path / "packed", quantise=Format(4, 32))
    from safetensors.numpy import save_file

    path = tmp_path / "packed" / "model.safetensors"
    whole, stem = load_file(path), "model.layers.0.mlp.up_proj"
    for change, said in (
        ({f"{stem}.biases": None}, f"has no tensor {stem}.biases, which its quantised weights need"),
        (
            {f"{stem}.scales": whole[f"{stem}.scales"][:, :1].copy()},
            f"tensor {stem}.weight of .* does not fit together",
        ),
        ({f"{stem}.scales": whole[f"{stem}.scales"] * np.float32(np.nan)}, f"tensor {stem}.weight of .* holds nan"),
    ):
        tensors = {k: v for k, v in {**whole, **change}.items() if v is not None}
        save_file(tensors, path)
        checkpoint = open_checkpoint(tmp_path / "packed")
        with pytest.raises(CheckpointError, match=said):
            load_params(checkpoint, config_of(checkpoint), backend="reference")


def test_scales_of_mxfp4_are_finite(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    converted(wide("qwen3", tmp_path / "model"), tmp_path / "packed", quantise=Format(4, 32, "mxfp4"))
    path, stem = tmp_path / "packed" / "model.safetensors", "model.layers.0.mlp.up_proj"
    tensors = load_file(path)
    tensors[f"{stem}.scales"][1, 0] = 255
    save_file(tensors, path)
    checkpoint = open_checkpoint(tmp_path / "packed")
    with pytest.raises(CheckpointError, match=f"tensor {stem}.weight of .* has a scale of 255, which is no number"):
        load_params(checkpoint, config_of(checkpoint), backend="reference")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tiny_checkpoints.write(tmp_path / "model", tiny_checkpoints.golden()["qwen3"])
    with pytest.raises(CheckpointError, match="exists; give a folder that does not"):
        converted(folder, folder)
    tensors = load_file(folder / "model.safetensors")
    from safetensors.numpy import save_file

    tensors["model.norm.weight"][3] = np.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight of .* holds inf"):
        converted(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


#: Converts for as long as it is let; each file takes a while, so that the kill comes in between.
_SLOW = """
import sys, time
from pathlib import Path
from m2ml.models import saving
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of
saving.SHARD = 8000
write = saving.save_file
def slowly(*args):
    write(*args)
    print("wrote", flush=True)
    time.sleep(0.2)
saving.save_file = slowly
checkpoint = open_checkpoint(sys.argv[1])
saving.convert(checkpoint, config_of(checkpoint), Path(sys.argv[2]), quantise=saving.Format(4, 32))
"""


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 3])
def test_a_killed_conversion_leaves_no_folder(files: int, tmp_path: Path) -> None:
    folder = wide("qwen3", tmp_path / "model")
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(folder), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(files):
        assert process.stdout.readline() == "wrote\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    left = [path for path in tmp_path.iterdir() if path.name != "model"]
    assert all(path.name.startswith(".out.") and not (path / "config.json").exists() for path in left)
    converted(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_gguf_becomes_a_folder(tmp_path: Path, tiny_of: Callable[[str], Tiny]) -> None:
    """Gemma's norms less 1 again, llama's rows back in halves."""
    from test_gguf import write_gguf

    for name, kind in (("gemma2", "gemma2"), ("llama, scaled and tied", "llama")):
        tiny = tiny_of(name)
        path = write_gguf(tmp_path / f"{kind}.gguf", tiny, kind)
        converted(path, tmp_path / kind)
        found = load_file(tmp_path / kind / "model.safetensors")
        for tensor, shape in tiny_checkpoints.golden()[name]["tensors"].items():
            np.testing.assert_allclose(found[tensor], tiny_checkpoints.weight(tensor, tuple(shape)), atol=2**-22)

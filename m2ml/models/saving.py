"""Write a language model as a Hugging Face folder: what transformers reads, or MLX where it is quantised.

A folder is made beside its place under a hidden name and moved there when it is whole, so that whatever moment the
process is killed at, nothing stands there that looks complete and is not.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from m2ml.files import whole
from m2ml.models.architectures import model_type
from m2ml.models.checkpoints import Checkpoint
from m2ml.models.checkpoints.folder import CONFIG, INDEX, SINGLE
from m2ml.models.decoder_config import DecoderConfig
from m2ml.models.loading import read_params
from m2ml.models.quantisation import dequantized
from m2ml.models.settings import DTYPES, CheckpointError
from m2ml.models.spelling import HUGGING_FACE
from m2ml.models.weights import Source, sources
from m2ml.ops import Quantized

#: Bytes of tensors in one file; a larger model is written as several.
SHARD = 4 << 30


@dataclass(frozen=True)
class Format:
    """How weights are quantised: bits and group size of the affine form, or mxfp4."""

    bits: int = 4
    group_size: int = 64
    mode: str = "affine"


@dataclass(frozen=True)
class Written:
    """What was written: bytes, and the largest change of a weight relative to the largest of its tensor."""

    bytes: int
    largest_change: float


def convert(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    target: Path,
    *,
    dtype: str | None = None,
    quantise: Format | None = None,
    dequantise: bool = False,
    extra: Callable[[Path], None] | None = None,
) -> Written:
    """Write the model of ``checkpoint`` to the folder ``target``, which must not exist.

    Floating weights are written in ``dtype``; unless given, in what they are, and in float32 where they come from GGUF.
    ``quantise`` packs matrices whose rows are whole groups; packed weights stay as they are unless ``dequantise``.
    ``extra(folder)`` writes more files, such as the tokenizer. Raises `CheckpointError` where ``target`` exists, and
    what reading the checkpoint raises; then nothing is left there.
    """
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"weights are written in {', '.join(DTYPES)}; got {dtype}")
    if checkpoint.spelling is not HUGGING_FACE:
        dtype = dtype or "float32"
        if any(block.rope and block.rope.factors for block in config.blocks):
            raise CheckpointError(
                f"{checkpoint.path} scales its rotary positions by factors of its own, for which a configuration of"
                " transformers has no word; m2ml runs it as it is"
            )
    with made(target) as folder:
        writer = _Writer(folder, checkpoint, config, dtype, quantise, dequantise)
        spelled = {s.path: s for s in sources(config, HUGGING_FACE[model_type(checkpoint.settings)])}
        for path, value in read_params(checkpoint, config):
            writer.add(spelled[path], value)
            checkpoint.release()
        if quantise and not writer.packed:
            raise CheckpointError(
                f"no matrix of {checkpoint.path} can be quantised in groups of {quantise.group_size}: their rows are no"
                " whole groups, or they are stored transposed"
            )
        written = writer.finish()
        if extra is not None:
            extra(folder)
        return Written(written, writer.largest_change)


@contextlib.contextmanager
def made(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``target`` when all went well."""
    if target.exists():
        raise CheckpointError(f"{target} exists; give a folder that does not")
    try:
        with whole(target, folder=True) as hidden:
            yield hidden
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}") from error


class Files:
    """Collects tensors and writes them to a folder, a file at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, Any] = {}
        self._held = 0
        self._written: list[tuple[str, list[str]]] = []
        self.bytes = 0

    def hold(self, name: str, array: Any) -> None:
        if self._held and self._held + array.nbytes > SHARD:
            self._write()
        # A copy: the pages of the checkpoint are let go once a parameter is done.
        self._tensors[name] = np.array(array, order="C")
        self._held += array.nbytes

    def _write(self) -> None:
        name = f"model-{len(self._written) + 1:05d}.safetensors"
        save_file(self._tensors, self._folder / name, {"format": "pt"})
        self._written.append((name, list(self._tensors)))
        self.bytes += self._held
        self._tensors, self._held = {}, 0

    def finish(self, configuration: Mapping[str, Any]) -> None:
        """The last file, the index where there are several, and the configuration."""
        self._write()
        if len(self._written) == 1:
            (self._folder / self._written[0][0]).rename(self._folder / SINGLE)
        else:
            places = {name: file for file, names in self._written for name in names}
            index = {"metadata": {"total_size": self.bytes}, "weight_map": places}
            (self._folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        (self._folder / CONFIG).write_text(json.dumps(configuration, indent=1), encoding="utf-8")


class _Writer:
    """What becomes of each parameter of a decoder, for `Files` to write."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        config: DecoderConfig,
        dtype: str | None,
        quantise: Format | None,
        dequantise: bool,
    ) -> None:
        self._files, self._checkpoint, self._config = Files(folder), checkpoint, config
        self._dtype, self._quantise, self._dequantise = dtype, quantise, dequantise
        self.packed: dict[str, Format] = {}
        self.largest_change = 0.0

    def add(self, source: Source, value: Any) -> None:
        if source.transposed and isinstance(value, Quantized):  # packed rows cannot be turned
            value = dequantized(value)
        for tensor, part in zip(source.parts, source.split(value), strict=True):
            self._add(tensor.name, self._formed(tensor.name, source, self._whole_norm(source, part)))

    def _whole_norm(self, source: Source, value: Any) -> Any:
        """Gemma's norms, which GGUF stores whole, less 1 again."""
        whole = self._checkpoint.settings.get("norm_weight_is_whole", False)
        gemma = model_type(self._checkpoint.settings).startswith("gemma")
        if whole and gemma and any("norm" in str(key) for key in source.path):
            return np.asarray(value, np.float32) - np.float32(1)
        return value

    def _formed(self, name: str, source: Source, value: Any) -> Any:
        if isinstance(value, Quantized) and (self._dequantise or (self._quantise and not self._is(value))):
            value = dequantized(value)
        if isinstance(value, Quantized) or self._quantise is None or not self._fits(name, source, value):
            return value
        return self._packed(value)

    def _is(self, value: Quantized) -> bool:
        assert self._quantise is not None
        return (value.bits, value.group_size, value.mode) == (
            self._quantise.bits,
            self._quantise.group_size,
            self._quantise.mode,
        )

    def _fits(self, name: str, source: Source, value: Any) -> bool:
        """Matrices of whole groups, but the router of experts, whose choice small errors change."""
        if value.ndim < 2 or source.transposed or "router" in source.path or "positions" in source.path:
            return False
        return bool(value.shape[-1] % self._quantise.group_size == 0) if self._quantise else False

    def _packed(self, value: Any) -> Quantized:
        import jax

        from m2ml import ops

        assert self._quantise is not None
        numbers = np.asarray(value, np.float32)
        asked = {"bits": self._quantise.bits, "group_size": self._quantise.group_size, "mode": self._quantise.mode}
        found: Quantized = jax.tree.map(np.asarray, ops.quantize(numbers, **asked))
        largest = float(np.abs(numbers).max(initial=0)) or 1.0
        change = float(np.abs(dequantized(found) - numbers).max(initial=0)) / largest
        self.largest_change = max(self.largest_change, change)
        return found

    def _add(self, name: str, value: Any) -> None:
        if not isinstance(value, Quantized):
            return self._files.hold(name, self._floating(value))
        stem = name.removesuffix(".weight")
        self.packed[stem] = Format(value.bits, value.group_size, value.mode)
        self._files.hold(name, value.packed)
        self._files.hold(f"{stem}.scales", value.scales if value.mode == "mxfp4" else self._floating(value.scales))
        if value.biases is not None:
            self._files.hold(f"{stem}.biases", self._floating(value.biases))
        return None

    def _floating(self, value: Any) -> Any:
        return value if self._dtype is None else value.astype(DTYPES[self._dtype])

    def finish(self) -> int:
        """Write what is left; the bytes of all weights."""
        self._files.finish(self._configuration())
        return self._files.bytes

    def _configuration(self) -> dict[str, Any]:
        """The checkpoint's own, with what changed."""
        values = dict(self._checkpoint.settings.values)
        foreign = [key for key in values if key.startswith("n_")] if values["model_type"] != "gpt2" else []
        for key in ("norm_weight_is_whole", "quantization", "quantization_config", *foreign):
            values.pop(key, None)
        if self._dtype is not None:
            values["dtype"] = self._dtype
        values.setdefault("architectures", [_CLASSES.get(values["model_type"], "")])
        if self.packed:
            values["quantization"] = _quantization(self.packed)
        return values


#: Classes of transformers by ``model_type``, for configurations that came from GGUF and do not name one.
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}


def _quantization(formats: Mapping[str, Format]) -> dict[str, Any]:
    """As MLX writes it: the most frequent format, and the modules that have another."""
    from collections import Counter

    common = Counter(formats.values()).most_common(1)[0][0]
    found: dict[str, Any] = vars(common).copy()
    return found | {name: vars(form).copy() for name, form in formats.items() if form != common}

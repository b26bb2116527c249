"""From a checkpoint to parameters on a backend: streamed, checked, joined as `Decoder` holds them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import ops
from m2ml.arrays import put as to_backend
from m2ml.kernel import select
from m2ml.models.architectures import decoder_config, model_type
from m2ml.models.checkpoints import Checkpoint
from m2ml.models.decoder_config import DecoderConfig
from m2ml.models.quantisation import dequantized
from m2ml.models.room import Room
from m2ml.models.settings import CheckpointError
from m2ml.models.spelling import Spelling
from m2ml.models.weights import Tensor, each_array, sources
from m2ml.ops import Quantized
from m2ml.plugins import registry
from m2ml.xla import XlaBackend

#: Numbers looked at together: the check for finite ones needs no more memory than this.
_CHUNK = 1 << 22


def config_of(checkpoint: Checkpoint) -> DecoderConfig:
    """The configuration of a decoder's checkpoint."""
    return decoder_config(checkpoint.settings.values, checkpoint.settings.source)


def load_params(checkpoint: Checkpoint, config: DecoderConfig, *, backend: str, dequantize: bool = False) -> Any:
    """The parameters of a decoder, arrays of ``backend`` in the dtype of ``config``; packed weights stay packed.

    One parameter is read, checked and handed over at a time. ``dequantize`` turns quantised weights into numbers.
    Scales of packed matrices stay as narrow as they are where a kernel of the backend multiplies with them so.
    Raises `CheckpointError` for tensors that are missing, left over, of another shape or not finite.
    """

    engine = _reading_where_they_lie(backend)
    keep = Room().copy if engine else _as

    def ready(part: Any) -> Any:
        if not dequantize and _stays(part, config.dtype, backend):
            return each_array(part, keep)
        return converted(part, config.dtype, dequantize=dequantize, keep=keep)

    tree: dict[Any, Any] = {}
    for path, value in read_params(checkpoint, config):
        parts = tuple(map(ready, value)) if isinstance(value, tuple) else ready(value)
        put(tree, path, parts if engine else to_backend(parts, backend))
        checkpoint.release()
    if engine is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, engine.from_hosts(leaves))


def _reading_where_they_lie(backend: str) -> XlaBackend | None:
    """The backend, if it takes arrays of NumPy without a copy."""
    engine = registry.get(backend)
    return engine if isinstance(engine, XlaBackend) and engine.devices()[0].kind == "cpu" else None


def _stays(weight: Any, dtype: str, backend: str) -> bool:
    """Whether a kernel of ``backend`` takes ``dtype`` times this packed matrix with scales that are narrower."""
    if not isinstance(weight, Quantized) or weight.biases is None or weight.packed.ndim != 2:
        return False
    wide, narrow = jnp.dtype(dtype), weight.scales.dtype
    if weight.biases.dtype != narrow or wide == narrow or jnp.promote_types(wide, narrow) != wide:
        return False
    return _multiplies(backend, wide, narrow, weight.bits, weight.group_size)


@functools.cache
def _multiplies(backend: str, dtype: Any, scales: Any, bits: int, group_size: int) -> bool:
    found = []

    def ask(x: Any, packed: Any, of_one: Any) -> None:
        call, leaves = ops.quantized_matmul.bind((x, Quantized(packed, of_one, of_one, bits, group_size)), {})
        avals = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        found.append(select(call, avals, backend, registry.get(backend).devices()[0].kind).kernel)

    shapes = ((1, group_size), dtype), ((1, group_size * bits // 32), np.uint32), ((1, 1), scales)
    jax.eval_shape(ask, *(jax.ShapeDtypeStruct(*one) for one in shapes))
    return found[0] is not None


def put(tree: dict[Any, Any], path: tuple[str | int, ...], value: Any) -> None:
    """Make ``value`` the leaf at ``path`` of nested dictionaries."""
    *outer, last = path
    for key in outer:
        tree = tree.setdefault(key, {})
    tree[last] = value


def read_params(checkpoint: Checkpoint, config: DecoderConfig) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each parameter by its path, as NumPy arrays, `Quantized` arrays of them, or tuples of parts."""
    settings = checkpoint.settings
    spelling = checkpoint.spelling[model_type(settings)]
    names = Names(checkpoint, spelling.aliases)
    wanted = list(sources(config, spelling, names))
    _check_left_over(checkpoint, spelling, config, {names[t.name] for s in wanted for t in s.parts if t.name in names})
    for source in wanted:
        value = source.joined([read_tensor(checkpoint, names, tensor) for tensor in source.parts])
        if len(source.parts) > 1:  # it is a copy
            checkpoint.release()
        yield source.path, value


class Names(Mapping[str, str]):
    """The name of a tensor in this checkpoint by its usual one, whose beginning may be spelled otherwise."""

    def __init__(self, checkpoint: Checkpoint, aliases: Sequence[tuple[str, str]]) -> None:
        self._shapes, self._aliases = checkpoint.shapes, aliases

    def __getitem__(self, name: str) -> str:
        for candidate in (name, *(name.replace(old, new, 1) for old, new in self._aliases if old in name)):
            if candidate in self._shapes:
                return candidate
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _check_left_over(checkpoint: Checkpoint, spelling: Spelling, config: DecoderConfig, used: set[str]) -> None:
    ignored = (*spelling.ignored, *((f"{spelling.head}.weight",) if config.tied else ()))
    left = [n for n in checkpoint.shapes if n not in used and not n.endswith(ignored) and not _of_images(n, checkpoint)]
    refuse_left_over(checkpoint, left)


def refuse_left_over(checkpoint: Checkpoint, left: Sequence[str]) -> None:
    """Raise `CheckpointError` where tensors are ``left`` that no parameter is made of."""
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.where(left[0])}{more} has no place in this model; is {checkpoint.settings.source} its own?"
        )


def _of_images(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor belongs to the half of a model that reads images."""
    seeing = checkpoint.settings.get("vision_config") is not None
    return seeing and ("vision_tower" in name or "multi_modal_projector" in name)


def read_tensor(checkpoint: Checkpoint, names: Mapping[str, str], tensor: Tensor) -> Any:
    """The tensor that a parameter is made of. Raises `CheckpointError` where it is missing or not what it must be."""
    if tensor.name not in names:
        raise CheckpointError(f"{checkpoint.path} has no tensor {tensor.name}, which its configuration asks for")
    name = names[tensor.name]
    shape = tuple(checkpoint.shapes[name])
    if shape != tensor.shape:
        raise CheckpointError(
            f"{checkpoint.where(name)} has shape {list(shape)}, but {checkpoint.settings.source} asks for"
            f" {list(tensor.shape)}"
        )
    value = checkpoint.read(name)
    where = checkpoint.where(name)
    if isinstance(value, Quantized):
        _check_quantized(value, where)
        for array in (value.scales, value.biases) if value.mode == "affine" else ():
            _check_finite(array, where)
    elif not jnp.issubdtype(value.dtype, jnp.floating):
        raise CheckpointError(f"{where} holds {value.dtype.name}; a weight is of floating-point numbers")
    else:
        _check_finite(value, where)
    return value


def _check_quantized(value: Quantized, where: str) -> None:
    from m2ml.ops.dequantize import check_quantized

    try:
        check_quantized("its quantised form", value)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where} does not fit together: {error}") from error
    if value.mode == "mxfp4" and np.any(value.scales == 255):
        raise CheckpointError(f"{where} has a scale of 255, which is no number; its weights must be finite")


def _check_finite(array: Any, where: str) -> None:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        finite = np.isfinite(part)
        if not finite.all():
            at = start + int(np.argmin(finite))
            raise CheckpointError(f"{where} holds {float(flat[at])} at element {at}; its weights must be finite")


def _as(array: Any, dtype: Any = None) -> Any:
    return array.astype(dtype or array.dtype, copy=False)


def converted(value: Any, name: str, *, dequantize: bool = False, keep: Callable[..., Any] = _as) -> Any:
    """An array in the dtype of this name; a `Quantized` one stays packed unless ``dequantize``.

    ``keep`` makes the arrays, of an array and perhaps a dtype.
    """
    dtype = jnp.dtype(name)
    if not isinstance(value, Quantized):
        return keep(value, dtype)
    if dequantize:
        return keep(dequantized(value), dtype)
    return each_array(value, lambda x: keep(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else keep(x))

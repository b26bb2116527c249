"""Projections whose weights may be quantised, or of several parts with a format each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml import ops
from m2ml.models.decoder_config import DecoderConfig
from m2ml.ops import Quantized
from m2ml.ops.activations import ACTIVATIONS, gelu, gelu_tanh

Array = jax.Array


def value_of(param: Any) -> Any:
    """What a Flax variable holds: an array, a `Quantized` array, or a tuple of them."""
    read = getattr(param, "get_value", None)
    return param.value if read is None else read()


def project(x: Array, weight: Any, /) -> Array:
    """``x @ weight.T`` for ``weight [rows, n]``: an array, a `Quantized` array, or a tuple of parts, rows in order."""
    if isinstance(weight, tuple):
        return jnp.concatenate([project(x, part) for part in weight], axis=-1)
    if isinstance(weight, Quantized):
        product: Array = ops.quantized_matmul(x, weight)
        return product
    return jax.lax.dot_general(x, weight.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))


class Linear(nnx.Module):
    """``activation(x @ weight.T + bias)``: ``x[*b, inputs] -> [*b, outputs]``, with a weight as `project` takes it."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (outputs, inputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Array, /, *, activation: str = "none") -> Array:
        weight = value_of(self.weight)
        bias = None if self.bias is None else value_of(self.bias).astype(x.dtype)
        if not isinstance(weight, tuple | Quantized):
            layer: Array = ops.linear_bias_act(x, weight.astype(x.dtype), bias, activation=activation)
            return layer
        y = project(x, weight)
        return ACTIVATIONS[activation](y if bias is None else y + bias)


class Table(nnx.Module):
    """A vector for each index, ``weight [rows, features]``, perhaps quantised."""

    def __init__(self, rows: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (rows, features), jnp.float32))

    def __call__(self, indices: Array, dtype: Any, /) -> Array:
        """``indices[*b] -> [*b, features]`` in ``dtype``."""
        weight = value_of(self.weight)
        if not isinstance(weight, Quantized):
            return weight[indices].astype(dtype)
        rows = jax.tree.map(lambda x: x[indices], weight)
        if weight.biases is not None:  # they may be narrower than what is computed in
            rows = dataclasses.replace(rows, scales=rows.scales.astype(dtype), biases=rows.biases.astype(dtype))
        vectors: Array = ops.dequantize(rows, dtype=dtype)
        return vectors

    def attend(self, x: Array, /) -> Array:
        """Products with every row: ``x[*b, features] -> [*b, rows]``."""
        return project(x, value_of(self.weight))


def gate_and_up(x: Array, config: DecoderConfig, /) -> Array:
    """The activation between the matrices of an MLP: ``x[*b, 2 n] -> [*b, n]`` where it is gated, gates first."""
    if config.gated:
        gate, up = jnp.split(x, 2, axis=-1)
        if config.activation == "silu":
            gated: Array = ops.swiglu(gate, up)
        else:
            gated = ops.geglu(gate, up, approximate="none" if config.activation == "gelu" else "tanh")
        return gated
    return _ACTIVATIONS[config.activation](x.astype(jnp.float32)).astype(x.dtype)


_ACTIVATIONS = {"silu": jax.nn.silu, "gelu": gelu, "gelu_tanh": gelu_tanh}

"""What convolutional networks share: a convolution, its batch norm and activation, and folding these into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from m2ml import ops
from m2ml.models.projection import Linear, value_of

Array = jax.Array
Pads = str | int


class Conv(nnx.Module):
    """A convolution's weight ``[height, width, in / groups, out]``, and perhaps a bias."""

    def __init__(self, shape: tuple[int, int, int, int], *, bias: bool, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape[-1:], jnp.float32)) if bias else None

    def __call__(self, x: Array, /, **static: Any) -> Array:
        bias = None if self.bias is None else value_of(self.bias).astype(x.dtype)
        y: Array = ops.conv_bias_act(x, value_of(self.weight).astype(x.dtype), bias, **static)
        return y


class BatchNorm(nnx.Module):
    """Statistics and weights of a batch norm, as it is used once it is trained."""

    def __init__(self, channels: int, eps: float) -> None:
        self.eps = eps
        self.weight, self.variance = (nnx.Param(jnp.ones((channels,), jnp.float32)) for _ in range(2))
        self.bias, self.mean = (nnx.Param(jnp.zeros((channels,), jnp.float32)) for _ in range(2))

    def __call__(self, x: Array, /, activation: str) -> Array:
        parts = (value_of(part) for part in (self.mean, self.variance, self.weight, self.bias))
        y: Array = ops.batch_norm_act(x, *parts, train=False, eps=self.eps, activation=activation)[0]
        return y


class ConvNorm(nnx.Module):
    """``activation(norm(conv(x)))``; ``folded``: the norm is part of the convolution (see `fold_norms`).

    ``x[b, height, width, inputs] -> [b, _, _, outputs]``. ``padding`` is of `ops.conv_bias_act`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        eps: float,
        folded: bool,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: Pads = "SAME",
        activation: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        self.static = {"strides": strides, "dilation": dilation, "groups": groups, "padding": padding}
        self.activation = activation
        self.conv = Conv((kernel, kernel, inputs // groups, outputs), bias=folded, rngs=rngs)
        self.norm = None if folded else BatchNorm(outputs, eps)

    def __call__(self, x: Array, /) -> Array:
        if self.norm is None:
            return self.conv(x, activation=self.activation, **self.static)
        return self.norm(self.conv(x, **self.static), self.activation)


class Classifier(nnx.Module):
    """Logits of the classes of each image by its ``head``, or its `features` where there is none."""

    config: Any
    head: Linear | None

    def __call__(self, images: Array, /) -> Array:
        x = self.features(images)
        return x if self.head is None else self.head(x.astype(jnp.dtype(self.config.dtype))).astype(jnp.float32)

    def features(self, images: Array, /) -> Array:
        """What the classifier reads, float32 ``[b, width]``."""
        raise NotImplementedError


def fold_norms(params: Any, eps: float) -> Any:
    """Parameters with every batch norm made part of its convolution: ``w s`` and ``bias - mean s``, in float64.

    ``s = weight / sqrt(variance + eps)`` scales what each channel gives.
    """
    if not isinstance(params, Mapping):
        return params
    if params.keys() != {"conv", "norm"}:
        return {key: fold_norms(value, eps) for key, value in params.items()}
    norm = {key: np.asarray(value, np.float64) for key, value in params["norm"].items()}
    scale = norm["weight"] / np.sqrt(norm["variance"] + eps)
    bias = norm["bias"] - norm["mean"] * scale
    weight = np.asarray(params["conv"]["weight"], np.float64) * scale
    return {"conv": {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}}


def divisible(channels: float, by: int = 8, least: int | None = None) -> int:
    """``channels`` rounded to a multiple of ``by``, at least ``least``, and by no more than a tenth down."""
    found = max(by if least is None else least, int(channels + by / 2) // by * by)
    return found if found >= 0.9 * channels else found + by

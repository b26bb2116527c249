"""Every layer of Flax NNX, forward and backward: mlx and cpu within the measured bound."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import m2ml

BACKENDS = ("cpu", "mlx")

#: Containers, bases and lifted transformations: they compute nothing of their own.
NOT_LAYERS = {"Dict", "List", "Module", "RNNCellBase", "Jit", "Remat", "Scan", "Vmap", "Pmap"}


def values(*shape):
    return np.random.default_rng(shape).uniform(-1.5, 1.5, shape).astype(np.float32)


def cell(kind):
    """A recurrent cell and one step's carry and input."""
    return lambda rngs: kind(4, 3, rngs=rngs)


def recurrent(rngs):
    return nnx.RNN(nnx.LSTMCell(4, 3, rngs=rngs))


def step(layer, x):
    carry = jax.tree.map(lambda c: c + 0.1, layer.initialize_carry(x.shape, nnx.Rngs(0)))
    return layer(carry, x)


def call(layer, *inputs):
    return layer(*inputs)


#: Name -> cases of (constructor from rngs, inputs).
LAYERS = {
    "Linear": [
        (lambda r: nnx.Linear(4, 3, rngs=r), [values(5, 4)]),
        (lambda r: nnx.Linear(4, 3, use_bias=False, rngs=r), [values(4)]),
    ],
    "LinearGeneral": [(lambda r: nnx.LinearGeneral((2, 3), (4, 2), axis=(0, 2), rngs=r), [values(2, 5, 3)])],
    "Einsum": [(lambda r: nnx.Einsum("bik,kj->bij", (4, 3), (3,), rngs=r), [values(2, 5, 4)])],
    "Conv": [
        (lambda r: nnx.Conv(4, 6, (3,), rngs=r), [values(2, 7, 4)]),
        (lambda r: nnx.Conv(4, 6, (3, 2), strides=(2, 1), kernel_dilation=(1, 2), rngs=r), [values(2, 7, 6, 4)]),
        (lambda r: nnx.Conv(4, 8, (3, 3), feature_group_count=2, padding="CIRCULAR", rngs=r), [values(1, 5, 5, 4)]),
        (lambda r: nnx.Conv(2, 3, (2, 2, 2), kernel_dilation=2, padding="VALID", rngs=r), [values(1, 4, 4, 4, 2)]),
    ],
    "ConvTranspose": [
        (lambda r: nnx.ConvTranspose(4, 3, (3,), strides=2, rngs=r), [values(2, 5, 4)]),
        (lambda r: nnx.ConvTranspose(2, 3, (3, 2), strides=(2, 3), padding="VALID", rngs=r), [values(1, 4, 3, 2)]),
    ],
    "Embed": [(lambda r: nnx.Embed(7, 4, rngs=r), [np.array([[0, 6, 3], [1, 1, 2]])])],
    "LayerNorm": [(lambda r: nnx.LayerNorm(6, rngs=r), [values(3, 6)])],
    "RMSNorm": [(lambda r: nnx.RMSNorm(6, rngs=r), [values(3, 6)])],
    "GroupNorm": [(lambda r: nnx.GroupNorm(6, num_groups=3, rngs=r), [values(2, 5, 6)])],
    "BatchNorm": [
        (lambda r: nnx.BatchNorm(6, rngs=r), [values(5, 6)]),
        (lambda r: nnx.BatchNorm(6, use_running_average=True, rngs=r), [values(5, 6)]),
    ],
    "InstanceNorm": [(lambda r: nnx.InstanceNorm(6, rngs=r), [values(2, 5, 6)])],
    "SpectralNorm": [(lambda r: nnx.SpectralNorm(nnx.Linear(4, 3, rngs=r), rngs=r), [values(5, 4)])],
    "WeightNorm": [(lambda r: nnx.WeightNorm(nnx.Linear(4, 3, rngs=r), rngs=r), [values(5, 4)])],
    "RoPE": [(lambda r: nnx.RoPE(), [values(2, 3, 5, 4)])],
    "PReLU": [(lambda r: nnx.PReLU(), [values(3, 4)])],
    "Dropout": [(lambda r: nnx.Dropout(0.4, rngs=r), [values(6, 5)])],
    "Sequential": [(lambda r: nnx.Sequential(nnx.Linear(4, 3, rngs=r), jnp.tanh), [values(2, 4)])],
    "LoRA": [(lambda r: nnx.LoRA(4, 2, 3, rngs=r), [values(5, 4)])],
    "LoRALinear": [(lambda r: nnx.LoRALinear(4, 3, lora_rank=2, rngs=r), [values(5, 4)])],
    "MultiHeadAttention": [
        (lambda r: nnx.MultiHeadAttention(2, 6, decode=False, rngs=r), [values(2, 4, 6)]),
        (
            lambda r: nnx.MultiHeadAttention(2, 6, decode=False, rngs=r),
            [values(2, 4, 6), values(2, 3, 6), values(2, 3, 6)],
        ),
    ],
    "LSTMCell": [(cell(nnx.LSTMCell), [values(2, 4)])],
    "OptimizedLSTMCell": [(cell(nnx.OptimizedLSTMCell), [values(2, 4)])],
    "GRUCell": [(cell(nnx.GRUCell), [values(2, 4)])],
    "SimpleCell": [(cell(nnx.SimpleCell), [values(2, 4)])],
    "RNN": [(recurrent, [values(2, 5, 4)])],
    "Bidirectional": [(lambda r: nnx.Bidirectional(recurrent(r), recurrent(r)), [values(2, 5, 4)])],
}


def layers_of_flax():
    return {n for n, v in vars(nnx).items() if inspect.isclass(v) and issubclass(v, nnx.Module)} - NOT_LAYERS


def test_every_layer_has_a_case():
    assert layers_of_flax() <= set(LAYERS)


def rebuilt(make, params, rest):
    """The layer with these leaves, made anew so that its variables belong to the current trace."""
    graph, *shapes = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
    pairs = zip(shapes, (params, rest), strict=True)
    return nnx.merge(graph, *(jax.tree.unflatten(jax.tree.structure(state), leaves) for state, leaves in pairs))


def run(make, inputs):
    """Outputs, changed state and gradients of the parameters and of the inputs."""
    layer = make(nnx.Rngs(0))
    _, params, rest = nnx.split(layer, nnx.Param, ...)
    use = step if isinstance(layer, nnx.RNNCellBase) else call
    floating = [x.dtype == np.float32 for x in inputs]

    def loss(params, moving, rest, fixed):
        parts = iter(moving), iter(fixed)
        layer = rebuilt(make, params, rest)
        outs = use(layer, *(next(parts[0] if f else parts[1]) for f in floating))
        total = sum(
            jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)) for y in jax.tree.leaves(outs)
        )
        return total, (outs, jax.tree.leaves(nnx.state(layer)))

    arguments = (
        jax.tree.leaves(params),
        [x for x, f in zip(inputs, floating, strict=True) if f],
        jax.tree.leaves(rest),
        [x for x, f in zip(inputs, floating, strict=True) if not f],
    )
    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    m2ml.compare(both, *arguments, backends=BACKENDS).check()


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in sorted(layers_of_flax() & set(LAYERS)) for case in range(len(LAYERS[name]))],
)
def test_forward_and_backward(name, case):
    run(*LAYERS[name][case])

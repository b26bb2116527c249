"""Ops on the providers' own operations: what is asked of them, held against the ops' definitions in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_calls import definitions, stand_in
from m2ml_jax_metal.kernels import KERNELS
from m2ml_jax_metal.providers import PROVIDERS

import m2ml
import m2ml.ops  # registers the ops
from m2ml import XlaBackend, op_primitive
from m2ml import kernel as kernel_module
from m2ml.equivalence.ops import (
    Implementation,
    check_gradient,
    check_laws,
    check_second_derivative,
    check_values,
    check_vmap,
    what_ran,
)
from m2ml.op import ops
from m2ml.plugins import registry

ON = Implementation("jax_metal", True)

#: Samples of an op that are checked here, evenly spread; the slow test takes all.
SAMPLES = 4


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """The CPU of this machine under the name of jax_metal; other tests know it as cpu."""
    registry.discover()
    monkeypatch.setattr(kernel_module, "platforms", dict(kernel_module.platforms))
    monkeypatch.setattr(registry._entries["jax_metal"], "backend", XlaBackend("jax_metal", "cpu"))
    monkeypatch.setattr(registry._entries["jax_metal"], "error", None)
    yield
    op_primitive.forget()
    jax.clear_caches()


FORWARD = [(name, k) for name in ("jax-mps", "metaljax") for k in KERNELS if k.op in ops and name in k.about]


def taken(kernel, dtype=np.float32):
    op = ops[kernel.op]
    every = list(op.samples())
    return [s for s, ran in zip(every, what_ran(op, every, "jax_metal", dtype), strict=True) if ran == kernel.name]


def spread(samples):
    return samples[:: max(len(samples) // SAMPLES, 1)]


FORWARD_KERNELS = pytest.mark.parametrize(("name", "kernel"), FORWARD, ids=lambda x: getattr(x, "name", x))


@FORWARD_KERNELS
def test_a_kernel_agrees_with_its_op(name, kernel):
    """Values in every dtype, and on one sample its laws, its gradient and its map."""
    op = ops[kernel.op]
    with stand_in(definitions, PROVIDERS[name]):
        for dtype, count in ((np.float32, SAMPLES), (jnp.bfloat16, 1), (np.float16, 1)):
            samples = taken(kernel, dtype)
            assert len(samples) >= 2
            for sample in spread(samples)[-count:]:
                check_values(op, sample, dtype, [ON])
        check_laws(op, samples[0], np.float32, ON)
        check_gradient(op, samples[0], np.float32, [ON])
        check_vmap(op, samples[0], [ON])


@pytest.mark.slow
@FORWARD_KERNELS
def test_a_kernel_agrees_with_its_op_on_every_sample(name, kernel):
    op = ops[kernel.op]
    with stand_in(definitions, PROVIDERS[name]):
        for sample in taken(kernel):
            check_values(op, sample, np.float32, [ON])
        for sample in taken(kernel, jnp.bfloat16)[::4]:
            check_values(op, sample, jnp.bfloat16, [ON])
        for sample in taken(kernel)[::3]:
            check_laws(op, sample, np.float32, ON)
            check_gradient(op, sample, np.float32, [ON])
            check_vmap(op, sample, [ON])
            check_second_derivative(op, sample, [ON])


def test_every_call_is_made_and_the_backward_ones_by_gradients():
    seen = set()
    with stand_in(definitions, PROVIDERS["jax-mps"], seen):
        for op, *arrays in (
            (ops["rms_norm"], np.ones((2, 4), "float32"), np.ones(4, "float32")),
            (ops["layer_norm"], np.ones((2, 4), "float32"), np.ones(4, "float32"), np.ones(4, "float32")),
        ):
            m2ml.jit(jax.value_and_grad(lambda *xs, op=op: op(*xs).sum(), argnums=1), backend="jax_metal")(*arrays)
        x = np.ones((2, 3, 2, 4), "float32")
        for causal in (True, False):
            m2ml.jit(lambda x, causal=causal: ops["attention"](x, x, x, causal=causal), backend="jax_metal")(x)
        w = m2ml.ops.quantize(np.ones((3, 64), "float32"))
        m2ml.jit(lambda w: ops["dequantize"](w), backend="jax_metal")(w)
        m2ml.jit(lambda x, w: ops["quantized_matmul"](x, w), backend="jax_metal")(np.ones((2, 64), "float32"), w)
    assert seen == set(definitions)


def test_masks_of_as_many_heads_as_queries_keep_their_axes():
    """The case in which jax-mps' own attention takes heads for queries without a word."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 4, 4, 8)).astype("float32")
    mask = rng.random((2, 4, 4, 4)) > 0.4
    with stand_in(definitions, PROVIDERS["jax-mps"]):
        assert m2ml.compare(ops["attention"], q, k, v, mask, backends=["jax_metal"]).ok
    wanted = ops["attention"].definition(q, k, v, mask)
    swapped = ops["attention"].definition(q, k, v, mask.transpose(0, 2, 1, 3))
    assert np.abs(swapped - wanted).max() > 0.1


def test_kernels_of_one_provider_decline_on_another():
    explained = m2ml.jit(lambda x: ops["rms_norm"](x), backend="jax_metal").explain
    with stand_in(definitions, PROVIDERS["jax-graft"]):
        said = str(explained(np.ones((2, 4), "float32")))
    assert "rms_norm: its definition; mps.rms_norm: jax-mps is not the provider here" in said


def test_what_a_call_lacks_is_left_to_the_definition():
    x = np.ones((1, 4, 2, 8), "float32")
    with stand_in(definitions, PROVIDERS["jax-mps"]):
        for static, why in (
            ({"soft_cap": 5.0}, "it has no soft cap and gives no log-sum-exp"),
            ({"return_lse": True}, "it has no soft cap and gives no log-sum-exp"),
        ):
            fn = m2ml.jit(lambda x, static=static: ops["attention"](x, x, x, **static), backend="jax_metal")
            assert f"attention: its definition; mps.sdpa: {why}" in str(fn.explain(x))


def test_the_text_of_a_call_is_what_jax_mps_reads():
    """A StableHLO custom call of version 2 with its settings as JSON, and nothing else."""
    from jax.interpreters import mlir
    from m2ml_jax_metal import kernels

    mlir.register_lowering(kernels._call_p(), kernels._lower, platform="cpu")
    x = jnp.ones((2, 4))
    text = jax.jit(lambda x: kernels.rms_norm(x, eps=1e-6)).lower(x).as_text()
    (line,) = [line for line in text.splitlines() if "mps.rms_norm" in line]
    assert "stablehlo.custom_call @mps.rms_norm(" in line
    assert 'backend_config = "{\\22eps\\22: 1.000000e-06}"' in line or 'backend_config = "{\\22eps\\22: 1e-06}"' in line
    assert "tensor<2x4xf32>, tensor<4xf32>) -> tensor<2x4xf32>" in line
    assert json.loads('{"eps": 1e-06}')["eps"] == 1e-6

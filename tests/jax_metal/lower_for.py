"""Lower m2ml's models and ops for a provider's platform, through the provider's own Python files: run by test_wheels.

``python lower_for.py jax-mps`` prints, as JSON, per program the operations and custom calls of its StableHLO, or the
error. Its platform is a second CPU client; the provider's native library is never loaded.
"""

import contextlib
import json
import re
import sys

import jax
import numpy as np
from jax.extend.backend import register_backend_factory
from jaxlib import xla_client
from m2ml_jax_metal import kernels, known_bad, rewrites
from m2ml_jax_metal.engine import _rewrites
from m2ml_jax_metal.machine import Machine
from m2ml_jax_metal.providers import PROVIDERS

import m2ml.ops
from m2ml import XlaBackend, stock
from m2ml.data import Images, Text
from m2ml.models import CNNConfig, GPTConfig
from m2ml.op import ops
from m2ml.plugins import registry
from m2ml.training import OptimizerConfig, cnn_task, gpt_task

WORDS = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 8


def register(name):
    """The platform of a provider, its lowerings, and ours."""
    provider = PROVIDERS[name]
    register_backend_factory(provider.platform, xla_client.make_cpu_client, priority=-1)
    jax.devices("cpu")
    if name == "jax-mps":
        from jax_plugins.mps import ops as own

        own.register_fused_ops()
        own.patch_jax_functions()
    elif name == "metaljax":
        from jax_plugins.metal import _register_linalg_lowerings

        _register_linalg_lowerings(callbacks=None, donation=True)
    elif name == "jax-graft":
        from jax_graft import _lowerings

        _lowerings.register()
    registry.discover()
    registry._entries["jax_metal"].backend = XlaBackend("jax_metal", provider.platform)
    kernels.use(provider)
    entries = known_bad.known_bad(name, provider.read_from, Machine("darwin", "arm64", macos="27.1", chip="Apple M5"))
    rewrites.register(_rewrites(entries), provider.platform)
    return provider


def tasks():
    text = Text("words", WORDS)
    config = GPTConfig(len(text.vocabulary), context=8, layers=2, heads=2, embed_dim=16, dropout=0.1)
    yield gpt_task(text, config, optimizer=OptimizerConfig(20, 5e-3), batch_size=4, seed=3)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 1)).astype(np.uint8)
    images = Images("noise", (pixels, np.arange(30, dtype=np.int32) % 3), (pixels, np.arange(30, dtype=np.int32) % 3))
    config = CNNConfig(8, 8, 1, images.classes, features=(4, 6), hidden_dim=8, dropout=0.1)
    yield cnn_task(images, config, optimizer=OptimizerConfig(20, 5e-3), batch_size=6, seed=3)


def transformer():
    """A Flax transformer block with an AdamW step: the layers that jax-mps replaces, a causal mask among them."""
    import jax.numpy as jnp
    import optax
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(16, rngs=rngs)
            self.attend = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
            self.up = nnx.Linear(16, 32, rngs=rngs)
            self.down = nnx.Linear(32, 16, rngs=rngs)

        def __call__(self, x):
            mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
            x = x + self.attend(self.norm(x), mask=mask)
            return x + self.down(jax.nn.gelu(self.up(x)))

    block = Block(nnx.Rngs(0))
    graph, params = nnx.split(block)
    tx = optax.adamw(1e-2)

    def loss(params, x):
        return jnp.mean(nnx.merge(graph, params)(x) ** 2)

    def step(params, moments, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        updates, moments = tx.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    return step, (params, tx.init(params), np.random.default_rng(0).normal(size=(2, 4, 16)).astype("float32"))


def programs():
    """(name, jitted function, arguments)."""
    for task in tasks():
        yield f"{task.name} train step", task.train_step.staged.jax_jit, (task.state_shapes(), task.batch(0))
        yield f"{task.name} start", task.start.staged.jax_jit, (np.uint32(0),)
    step, args = transformer()
    yield "flax transformer train step", m2ml.jit(step).staged.jax_jit, args
    for name, op in ops.items():
        samples = [s for s in op.samples() if all(np.asarray(x).size for x in jax.tree.leaves(s.args))]
        for sample in samples[:: max(len(samples) // 6, 1)]:
            call = jax.jit(lambda *args, op=op, sample=sample: op(*args, **sample.static))
            yield f"{name}: {sample.name}", call, sample.args
            floating = [i for i, x in enumerate(sample.args) if getattr(x, "dtype", None) == np.float32]
            if floating and name not in ("quantize", "sample_token"):
                yield f"{name} gradient: {sample.name}", jax.jit(_gradient(op, sample, floating)), sample.args


def _gradient(op, sample, floating):
    def total(*args):
        outs = [y for y in jax.tree.leaves(op(*args, **sample.static)) if np.issubdtype(y.dtype, np.floating)]
        return sum(y.sum() for y in outs)

    return jax.grad(total, argnums=floating)


#: An operation begins a line, stands behind ``=``, or is what a reduction applies; attributes have such names too.
OPERATION = re.compile(r'(?:^|=|\bapplies)\s*"?((?:stablehlo|chlo|mhlo|func|sdy)\.[a-z_0-9]+)', re.MULTILINE)


def describe(text):
    return {
        "operations": sorted(set(OPERATION.findall(text))),
        "targets": sorted(set(re.findall(r"custom_call @([\w.$]+)", text))),
        "donated": text.count("tf.aliasing_output") + text.count("jax.buffer_donor"),
    }


def lowered(jitted, args, platform):
    """The StableHLO of a program for one platform, with chlo's operations expanded as jaxlib expands them."""
    found = jitted.trace(*args).lower(lowering_platforms=(platform,))
    with contextlib.suppress(Exception):
        from jax.extend.mlir import passmanager
        from jax.extend.mlir.dialects import stablehlo

        stablehlo.register_stablehlo_passes()
        module = found.compiler_ir("stablehlo")
        with module.context:
            expand = "builtin.module(func.func(chlo-legalize-to-stablehlo))"
            passmanager.PassManager.parse(expand).run(module.operation)
        return str(module)
    return found.as_text()


def main(name):
    provider, found = register(name), {}
    for title, jitted, args in programs():
        try:
            found[title] = describe(lowered(jitted, args, provider.platform))
        except Exception as error:
            found[title] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    replaced = [one.title for one in stock.find_replaced()]
    print(json.dumps({"jax": jax.__version__, "replaced": replaced, "programs": found}))


if __name__ == "__main__":
    main(sys.argv[1])

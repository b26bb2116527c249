"""Every architecture of the decoder: the logits of transformers, on every backend, however the tokens are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_checkpoints import CASES, LENGTHS, tokens
from tiny_models import BACKENDS, Tiny, forward

import m2ml
from m2ml.equivalence import measured_bounds
from m2ml.equivalence.judgement import judge
from m2ml.models import Decoder, functional
from m2ml.models.architectures import DECODERS
from m2ml.models.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from m2ml.models.experts import Experts
from m2ml.models.kv_cache import capacity_of, grown, make_cache
from m2ml.models.spelling import HUGGING_FACE

#: Cases whose caches are cut in every way in the fast suite: rings and layers without a window in one.
CUT = ("gemma3_text",)

#: Cases that both backends run in the fast suite; between them they have every kind of layer.
FAST = ("llama", "gemma3_text", "qwen3_moe", "gpt2")


def test_layers_of_which_one_is_traced_are_what_all_of_them_would_be() -> None:
    layers = [LayerConfig(window=window, sparse=sparse) for window in (3, None) for sparse in (False, True)]
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_dim": 24, "context": 64}
    config = DecoderConfig(11, 16, **sizes, blocks=(*layers, *layers), experts=ExpertsConfig(4, 2, 8))
    model, made = functional(Decoder, config), Decoder(config, rngs=nnx.Rngs(0))
    assert [block.attention.block for block in made.blocks] == list(config.blocks)
    params = nnx.to_pure_dict(nnx.state(made))
    np.testing.assert_array_equal(model.apply(params, tokens := jnp.arange(5)[None]), made(tokens))


def test_every_architecture_has_a_case() -> None:
    covered = {name.split(",")[0] for name in CASES}
    assert covered == set(DECODERS) - {"gemma3"}  # gemma3 is gemma3_text inside a model that reads images
    assert set(HUGGING_FACE) == set(DECODERS)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of(name)
    found = np.array(tiny.bound.expected)
    for row, length, golden in zip(found, LENGTHS, tiny.golden, strict=True):
        row[length - 3 : length] = golden
    tiny.hold(found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_logits_agree_on_every_backend(name: str, backend: str, tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of(name)
    tiny.hold(forward(tiny.config).on(backend)(tiny.params(backend), tokens()))


def in_pieces(tiny: Tiny, backend: str, sizes: list[int], capacity: int, grown_to: int | None = None) -> np.ndarray:
    """Logits of all tokens, read through a cache in pieces of these sizes, each row up to its own length."""
    model = functional(Decoder, tiny.config)
    step = m2ml.jit(lambda params, piece, cache, counts: model.apply(params, piece, cache, counts=counts)).on(backend)
    params, cache = tiny.params(backend), m2ml.put(make_cache(tiny.config, len(LENGTHS), capacity), backend)
    found, start = [], 0
    for i, size in enumerate(sizes):
        if grown_to and i == len(sizes) // 2:
            host = m2ml.get(cache)
            cache = m2ml.put(m2ml.get(grown(host, tiny.config, grown_to)), backend)
        piece = tokens()[:, start : start + size]
        counts = np.clip(np.array(LENGTHS) - start, 0, size).astype(np.int32)
        logits, cache = step(params, piece, cache, counts)
        found.append(m2ml.get(logits))
        start += size
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("dealt", ["evenly", "to one", "to the last two"])
def test_experts_give_the_same_however_tokens_are_dealt(dealt: str) -> None:
    """Blocks of pairs against every expert on every row, with shares of 0 for those that did not choose it."""
    blocks = (LayerConfig(sparse=True),)
    config = DecoderConfig(11, 6, 2, 2, 4, 8, 64, blocks, experts=ExpertsConfig(5, 2, 7))
    layer, rng = Experts(config, rngs=nnx.Rngs(0)), np.random.default_rng(1)
    rows, up, down = (rng.normal(size=shape).astype(np.float32) for shape in [(33, 6), (5, 14, 6), (5, 6, 7)])
    first, second = {"evenly": (rng.permutation(33) % 5, 1), "to one": (2, 1), "to the last two": (3, 1)}[dealt]
    chosen = np.stack([np.broadcast_to(first, 33), (np.broadcast_to(first, 33) + second) % 5], axis=1)
    shares = rng.uniform(size=(33, 2)).astype(np.float32)

    def plainly(rows, up, down):
        gates, ups = np.split(np.einsum("rn,emn->erm", rows, up), 2, axis=-1)
        every = np.einsum("erm,enm->ern", gates / (1 + np.exp(-gates)) * ups, down)
        return sum(every[chosen[:, i], np.arange(33)] * shares[:, i, None] for i in range(2))

    given = [x.astype(np.float64) for x in (rows, up, down)]
    run, arrays = m2ml.jit(lambda *a: layer._block_by_block(*a)), (rows, chosen, shares, up, down)
    program = run.program(*arrays)
    bound = replace(measured_bounds(program, arrays)[0], expected=plainly(*given))
    for backend in BACKENDS:
        report = judge("experts", m2ml.get(run.on(backend)(*arrays)), bound)
        assert report.ok, str(report)
    every = 33 * 5 * (14 * 6 + 7 * 6) * 2
    assert program.cost.flops < every


def outgrows(tiny: Tiny) -> bool:
    """Whether a cache would come to have room for long factors when some of its keys have turned by the short ones."""
    return any(b.rope and b.rope.long_factors and b.rope.original < max(LENGTHS) for b in tiny.config.blocks)


def every_cut(tiny: Tiny, backend: str) -> None:
    longest = max(LENGTHS)
    tiny.hold(in_pieces(tiny, backend, [longest], longest))
    tiny.hold(in_pieces(tiny, backend, [1] * longest, longest))
    tiny.hold(in_pieces(tiny, backend, [7, 2, 1, 3], longest))
    if not outgrows(tiny):
        tiny.hold(in_pieces(tiny, backend, [3, 1, 1, 5, 2, 1], 5, grown_to=longest + 3))


@pytest.mark.parametrize("name", CUT)
def test_a_cache_gives_the_same_however_tokens_are_cut(name: str, tiny_of: Callable[[str], Tiny]) -> None:
    every_cut(tiny_of(name), "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_every_cache_gives_the_same_on_every_backend(name: str, backend: str, tiny_of: Callable[[str], Tiny]) -> None:
    every_cut(tiny_of(name), backend)


def test_a_window_needs_no_more_room_than_itself(tiny_of: Callable[[str], Tiny]) -> None:
    config = tiny_of("mistral").config
    cache = make_cache(config, 1, 1000)
    assert {layer.keys.shape[1] for layer in cache.layers} == {5}
    assert capacity_of(cache) is None
    assert capacity_of(make_cache(config, 1, 4)) == 4


def test_parts_of_different_formats_are_one_projection() -> None:
    from m2ml import ops
    from m2ml.models.projection import project

    rng = np.random.default_rng(0)
    x, a, b = (jnp.asarray(rng.normal(size=(n, 64)), jnp.float32) for n in (3, 5, 7))
    packed = ops.quantize(b, bits=8, group_size=32)
    both = np.asarray(project(x, (a, packed)))
    np.testing.assert_array_equal(both[:, :5], project(x, a))
    np.testing.assert_array_equal(both[:, 5:], project(x, packed))

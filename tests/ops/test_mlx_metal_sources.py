"""Metal sources of the mlx backend: address spaces, memory, and that every barrier is needed."""

import numpy as np
import pytest
from m2ml_kernels.metal_host import Schedule, Source, Variant, emulate, mlx_kernel
from m2ml_kernels.metal_host.lint import lint
from m2ml_mlx.kernels import source

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml.equivalence.ops import Implementation, assert_agrees, call_of
from m2ml.errors import M2mlError
from m2ml.op import Sample, ops

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
BARRIER = "  threadgroup_barrier(metal::mem_flags::mem_threadgroup);\n"


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def tree(scale=1.0):
    return [numbers(9) * np.float32(scale), numbers(3, 5)]


LABELS = np.array([2, -100, 699], np.int32)
SQUARES = [np.square(x) for x in tree()]
#: One call of each op that has a Metal kernel; rows are longer than a threadgroup's threads, or end within one.
CALLS = {
    "swiglu": ((numbers(3, 7), numbers(3, 7)), {}),
    "add_rms_norm": ((numbers(3, 300), numbers(3, 300), numbers(300)), {}),
    "adamw_update": ((tree(), tree(), SQUARES, tree(2.0), np.int32(4), np.float32(0.1)), {"apply": True}),
    "batch_norm_act": (
        (numbers(5, 9), numbers(9), np.square(numbers(9)), numbers(9), None),
        {"train": False, "activation": "gelu_tanh"},
    ),
    "rope": ((numbers(9, 3, 20), np.arange(9, dtype=np.int32), numbers(8)), {"interleaved": True}),
    "softmax_cross_entropy": ((numbers(3, 700), LABELS), {"label_smoothing": 0.1, "return_lse": True}),
    "sample_token": (
        (numbers(3, 300), np.array([1 << 31, 5, 1 << 20], np.uint32), np.array([[4, -1]] * 3, np.int32)),
        {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.5},
    ),
    "linear_cross_entropy": ((numbers(3, 4), numbers(9, 4), LABELS % 9), {"with_gradients": True, "soft_cap": 2.0}),
}


def check(name):
    args, static = CALLS[name]
    op, sample = ops[name], Sample("a call", args, static)
    assert_agrees(name, call_of(op, sample), call_of(op.definition, sample), args, [Implementation("mlx", True)])


@pytest.mark.parametrize("name", CALLS)
def test_pointers_keep_their_address_spaces(name, monkeypatch):
    texts, generate = set(), mlx_kernel.generate

    def recorded(*given):
        texts.add(generate(*given))
        return generate(*given)

    monkeypatch.setattr(mlx_kernel, "generate", recorded)
    with emulate():
        check(name)
    assert texts
    for text in texts:
        assert lint(Source(HEAD + text, f"{name}.metal")) == []


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("name", ["add_rms_norm", "softmax_cross_entropy", "rope", "sample_token"])
def test_sanitizers_find_nothing(name, sanitizer):
    """No element outside an array is touched, and threads that share memory wait for each other."""
    with emulate(variant=Variant(sanitizer=sanitizer)):
        check(name)


def without_barrier(index):
    """The shared functions without one of their barriers."""
    parts = source.text("metal/functions.h").split(BARRIER)
    return "".join(part + BARRIER * (i not in (index, len(parts) - 1)) for i, part in enumerate(parts))


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_barrier_that_is_missing_is_seen(index, monkeypatch):
    """The third guards a maximum against what was read before; no kernel asks for one after a sum."""
    text, changed = source.text, without_barrier(index)
    monkeypatch.setattr(source, "text", lambda path: changed if path == "metal/functions.h" else text(path))
    with emulate(schedule=Schedule("random", seed=1)), pytest.raises(M2mlError):
        check("softmax_cross_entropy")

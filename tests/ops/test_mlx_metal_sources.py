"""Metal sources of the mlx backend: every barrier of what they share is needed."""

import numpy as np
import pytest
from m2ml_kernels.metal_host import Schedule, emulate
from m2ml_mlx.kernels import source

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml.equivalence.ops import Implementation, assert_agrees, call_of
from m2ml.errors import M2mlError
from m2ml.op import Sample, ops

BARRIER = "  threadgroup_barrier(metal::mem_flags::mem_threadgroup);\n"


def check_a_loss():
    """Rows are longer than a threadgroup's threads, so that its simdgroups wait for each other."""
    logits = np.random.default_rng(703).standard_normal((3, 700)).astype(np.float32)
    args = logits, np.array([2, -100, 699], np.int32)
    op, sample = ops["softmax_cross_entropy"], Sample("a call", args, {"label_smoothing": 0.1, "return_lse": True})
    exact = call_of(op.definition, sample)
    assert_agrees(op.name, call_of(op, sample), exact, args, [Implementation("mlx", True)])


def without_barrier(index):
    """The shared functions without one of their two barriers."""
    parts = source.text("metal/functions.h").split(BARRIER)
    assert len(parts) == 3
    return "".join(part + BARRIER * (i not in (index, len(parts) - 1)) for i, part in enumerate(parts))


@pytest.mark.parametrize("index", [0, 1])
def test_a_barrier_that_is_missing_is_seen(index, monkeypatch):
    """The first waits until what is there was read, the second until it is written."""
    text, changed = source.text, without_barrier(index)
    monkeypatch.setattr(source, "text", lambda path: changed if path == "metal/functions.h" else text(path))
    with emulate(schedule=Schedule("random", seed=1)), pytest.raises(M2mlError):
        check_a_loss()

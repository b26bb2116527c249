"""Every Metal kernel of the registry, whoever registers it: lint, forward and random orders; all the rest when slow."""

import numpy as np
import pytest
from m2ml_kernels.metal_host import Schedule, emulate
from m2ml_mlx.kernels import sampling

import m2ml
from m2ml.equivalence.kernels import MetalCheck, Subject, check_kernel, metal_kernels
from m2ml.ops import sample_token

EVERY = metal_kernels()
NAMES = [kernel.name for _, kernel in EVERY]


def test_there_are_kernels():
    assert "metal/swiglu" in NAMES
    assert "metal/softmax_cross_entropy_backward" in NAMES


@pytest.mark.parametrize(("op", "kernel"), EVERY, ids=NAMES)
def test_a_kernel_is_right_in_order_and_at_random(op, kernel):
    """On all of its op's samples in float32, and a part of them in shorter dtypes; what they launch is linted."""
    check, part = MetalCheck(Subject(op, kernel)), MetalCheck(Subject(op, kernel, every=3))
    steps = [check.run("forward"), part.run("shorter", dtypes=check.dtypes()[1:])]
    steps.append(part.run("random", Schedule("random", seed=3, shuffle_reductions=True)))
    part.cases |= check.cases
    for step in [*steps, part.lint()]:
        assert step.ran, step
        assert step.passed, step
    assert check.cases


def test_a_row_that_does_not_fit_on_the_chip_gives_the_same_tokens(monkeypatch):
    """Of its nine tokens a thread has one in registers, two in threadgroup memory, and the others where they were."""
    monkeypatch.setattr(sampling, "THREADS", 32)
    monkeypatch.setattr(sampling, "KEPT", 1)
    monkeypatch.setattr(sampling, "SHARED", 2)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 270), scale=3).astype(np.float32)
    logits[1, 200:] = -np.inf
    logits[2, 250] = np.nan
    given = logits, rng.integers(0, 2**32, 6, np.uint32), rng.integers(-1, 270, (6, 20), np.int32)
    for static in ({}, {"top_k": 200, "top_p": 0.95, "min_p": 0.001, "repetition_penalty": 1.7}):
        draw = m2ml.jit(lambda *xs, static=static: sample_token(*xs, **static))
        expected = m2ml.get(draw.on("cpu")(*given))
        launched = []
        with emulate(watch=lambda case, result, launched=launched: launched.append(case)):
            np.testing.assert_array_equal(m2ml.get(draw.on("mlx")(*given)), expected)
        assert launched[-1].template.endswith(" 1, 64")  # KEPT, and the places of 32 threads


@pytest.mark.slow
@pytest.mark.parametrize(("op", "kernel"), EVERY, ids=NAMES)
def test_a_kernel_passes_every_check(op, kernel):
    report = check_kernel(op, kernel)
    assert report.passed, report.text
    assert all(step.ran for step in report.steps), report.text

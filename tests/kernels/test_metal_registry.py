"""Every Metal kernel of the registry, whoever registers it: lint, forward and random orders; all the rest when slow."""

import pytest
from m2ml_kernels.metal_host import Schedule

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml.equivalence.kernels import MetalCheck, Subject, check_kernel, metal_kernels

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


@pytest.mark.slow
@pytest.mark.parametrize(("op", "kernel"), EVERY, ids=NAMES)
def test_a_kernel_passes_every_check(op, kernel):
    report = check_kernel(op, kernel)
    assert report.passed, report.text
    assert all(step.ran for step in report.steps), report.text

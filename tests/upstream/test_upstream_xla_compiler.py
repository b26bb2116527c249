"""Programs that XLA's compiler for CPUs refuses, or that end its process."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import lax

DIVISION_BY_ZERO = """
import jax, numpy as np
from jax import lax
jax.jit(lambda: lax.{name}(lax.full((), 7, np.int32), lax.full((), 0, np.int32))).lower().compile()
"""

UNREAD_REDUCTION = """
import jax, jax.numpy as jnp, numpy as np
from jax import lax

def larger(x, y):
    first = x[0] > y[0]
    return jnp.where(first, x[0], y[0]), jnp.where(first, x[1], y[1])

def body(carry):
    count, x = carry
    lax.reduce((x, x), (np.int32(0), np.int32(0)), larger, (1,))
    return count + 1, x

jax.jit(lambda x: lax.while_loop(lambda carry: carry[0] < 2, body, (0, x))).lower(np.ones((7, 7), np.int32)).compile()
"""


def compiled(source: str) -> None:
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode > 0:
        raise RuntimeError(f"it failed in another way: {done.stderr[-300:]}")
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["div", "rem"])
@pytest.mark.xfail(
    strict=True, reason="jax 0.10.2: a constant divided by the constant 0 is worked out, which is SIGFPE"
)
def test_a_whole_number_divided_by_zero_compiles(name: str) -> None:
    compiled(DIVISION_BY_ZERO.format(name=name))


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="jax 0.10.2: StableHLO dies taking the unread results off a reduction whose reducer calls a function "
    "(SIGSEGV in ReduceOpUnusedResultCanon)",
)
def test_a_reduction_in_a_loop_that_nothing_reads_compiles() -> None:
    compiled(UNREAD_REDUCTION)


@pytest.mark.xfail(
    strict=True,
    raises=jax.errors.JaxRuntimeError,
    reason="jax 0.10.2: unsupported elementwise operation mulhi, if fused",
)
def test_the_high_half_of_a_product_of_a_high_half_compiles() -> None:
    x = np.int32([1 << 20, -(1 << 25)])
    np.testing.assert_array_equal(jax.jit(lambda x: lax.mulhi(lax.mulhi(x, x), x))(x), [0, -2048])

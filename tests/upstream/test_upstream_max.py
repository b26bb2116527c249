"""The largest element of a row that holds a NaN is NaN."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.xfail(
    strict=True,
    reason="jax 0.10.2 on the CPU gives the largest of a part of the row where rows are long; jax 0.5.0 gives NaN",
)
def test_the_largest_of_a_long_row_with_a_nan_is_nan() -> None:
    x = np.zeros((2, 4096), np.float32)
    x[1, 0] = np.nan
    assert np.isnan(jnp.max(x, axis=-1)[1])

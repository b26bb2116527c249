"""NumPy's complex expm1 where it overflows."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.xfail(strict=True, reason="NumPy 2.4: expm1(1000 + 0j) is inf + nanj, while exp(1000 + 0j) is inf + 0j")
def test_expm1_on_the_real_axis_stays_there() -> None:
    with np.errstate(all="ignore"):
        assert np.expm1(np.complex128(1000)) == np.exp(np.complex128(1000)) == np.inf

"""What the generators draw."""

import contextlib
import importlib
import unittest

import numpy as np

from m2ml.equivalence.primitives import CASES, examples, load
from m2ml.equivalence.primitives.values import number

load()


def drawn():
    """Some numbers, and the arrays of three cases of every primitive."""
    seen = []
    examples(lambda draw: seen.append([number(draw) for _ in range(30)]), 20)
    for name in CASES:

        def case(draw, name=name):
            seen.append([(x.dtype, x.shape, x.tobytes()) for x in map(np.asarray, CASES[name](draw, name)[1])])

        with contextlib.suppress(unittest.SkipTest):  # primitives that this JAX does not have yet
            examples(case, 3)
    return seen


def test_a_case_owes_nothing_to_the_literals_of_other_modules(tmp_path, monkeypatch):
    before = drawn()
    whole = range(100, 1 << 20, 1021)
    (tmp_path / "full_of_numbers.py").write_text(f"literals = {[*whole[:900], *(n / 7e4 for n in whole[:120])]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("full_of_numbers")
    assert drawn() == before

"""The C++ kernels under AddressSanitizer and UBSan: on its op's samples each touches nothing but its own arrays."""

from __future__ import annotations

import pytest
from m2ml_cpu.ffi import FLAGS, source_of
from outside_xla import SOURCES, Outside, check_file, in_place_of

pytestmark = pytest.mark.slow

SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DM2_GUARD=0")

#: Reads one number behind its argument.
TOO_FAR = """#include "call.h"
M2ML_KERNEL(swiglu) {
  const float *gate = call.in(0).data<float>();
  for (int64_t i = 0; i < call.out(0).count(); ++i) call.out(0).data<float>()[i] = gate[i + 1];
}
M2ML_KERNEL(swiglu_backward) {}
"""


@pytest.fixture
def sanitized(monkeypatch):
    """A function that puts a file of kernels into a program with sanitizers, whose arrays end where their bytes do."""
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    flags = [*(flag for flag in FLAGS if flag != "-O3"), *SANITIZERS]
    return lambda source, body="": in_place_of(source, Outside(source, flags, body=body))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_kernel_touches_its_own_arrays_only(sanitized, source):
    with sanitized(source) as calls:
        check_file(source, calls)


def test_one_number_too_many_is_seen(sanitized):
    with sanitized(source_of("swiglu"), TOO_FAR) as calls, pytest.raises(Exception, match="the program ended"):
        check_file(source_of("swiglu"), calls)

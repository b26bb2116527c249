"""The C++ kernels' AVX-512 code, on an x86-64 that need have AVX2 only: each kernel on its op's samples.

The instructions that the kernels name are made of others (`avx512.h`); what they say as vectors of 16 floats, the
compiler takes apart itself. That shows that the numbers are right; it says nothing of speed, nor of what a compiler
makes of the same lines for a processor with AVX-512.
"""

from __future__ import annotations

import platform

import pytest
from m2ml_cpu.ffi import FLAGS, source_of
from outside_xla import HERE, SOURCES, Outside, check_file, in_place_of

from m2ml.errors import Disagreement

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-512 is made of AVX2, which is x86-64's"),
]

#: Of one generation of processors after the other; what one adds, only some files use.
GENERATIONS = {"avx512": (), "vnni": ("-DM2ML_VNNI",), "bf16": ("-DM2ML_VNNI", "-DM2ML_BF16")}


def outside(source, generation, body=""):
    instead = {"-march=native": "-march=haswell", "-O3": "-O1"}  # what takes vectors apart takes minutes to optimise
    flags = [*(instead.get(flag, flag) for flag in FLAGS), "-include", str(HERE / "avx512.h")]
    return in_place_of(source, Outside(source, [*flags, *GENERATIONS[generation]], body=body))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_avx512_code_agrees_with_the_definition(source):
    with outside(source, "avx512") as calls:
        check_file(source, calls)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_bfloat16_rounded_by_one_instruction(source):
    with outside(source, "bf16") as calls:
        check_file(source, calls)


def test_products_of_bytes_by_one_instruction():
    source = source_of("quantized_matmul")
    with outside(source, "vnni") as calls:
        check_file(source, calls)


#: A kernel that is wrong, and compiles only where AVX-512's code is what is compiled.
WRONG = """#include "vector.h"
static_assert(m2ml::kLanes == 16 && m2ml::kStreams);
M2ML_KERNEL(swiglu) { for (int64_t i = 0; i < call.out(0).count(); ++i) call.out(0).data<float>()[i] = 7; }
M2ML_KERNEL(swiglu_backward) {}
"""


def test_a_mistake_is_seen():
    source = source_of("swiglu")
    with outside(source, "avx512", WRONG) as calls, pytest.raises(Disagreement, match="swiglu on "):
        check_file(source, calls)

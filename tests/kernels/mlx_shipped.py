"""MLX's own Metal kernels, as its wheel ships their headers: how each is launched, and what it should compute."""

# ruff: noqa: E501, an argument list to a line

import struct
from dataclasses import dataclass, field

import ml_dtypes
import mlx.core as mx
import numpy as np
from m2ml_kernels.metal_host import Output, Source, compile_kernel, launch
from m2ml_kernels.metal_host.mlx_kernel import metal_headers

FOLDER = "mlx/backend/metal/kernels"
DTYPES = {"float": np.dtype(np.float32), "half": np.dtype(np.float16), "bfloat": np.dtype(ml_dtypes.bfloat16)}
SMALLEST = {"float": 2.0**-126, "half": 2.0**-25, "bfloat": 2.0**-126}  # what rounding near zero, or flushing, may lose
UNIT = {"float": 2.0**-24, "half": 2.0**-11, "bfloat": 2.0**-8}


def header(path, *before):
    """A header of MLX as a kernel's own source, after those that come first where MLX includes it."""
    root = metal_headers()
    prelude = "".join(f'#include "{FOLDER}/{name}"\n' for name in ("utils.h", *before))
    return Source((root / FOLDER / path).read_text(), path, (root, root / FOLDER), prelude)


@dataclass
class Launch:
    """A kernel of MLX with arguments: how to compile and run it, its right output in float64, and the bound."""

    source: Source
    kernel: str
    template: str
    buffers: dict
    output: int
    groups: tuple
    threads: tuple
    expected: np.ndarray
    bound: np.ndarray
    constants: dict = field(default_factory=dict)

    def compile(self, **options):
        return compile_kernel(self.source, self.kernel, template=self.template, constants=self.constants, **options)

    def run(self, kernel, **options):
        grid = tuple(groups * threads for groups, threads in zip(self.groups, self.threads, strict=True))
        plain = {
            i: b.view(np.uint16) if getattr(b, "dtype", 0) == DTYPES["bfloat"] else b for i, b in self.buffers.items()
        }
        return launch(kernel, plain, grid=grid, threadgroup=self.threads, **options)

    def error(self, result):
        """The largest error as a share of the bound; NaN where the kernel left one."""
        dtype = DTYPES[self.template.split(",")[0]]
        got = result.buffers[self.output].view(dtype).astype(np.float64).reshape(self.expected.shape)
        return float(np.max(np.abs(got - self.expected) / self.bound))


def _draw(seed, shape, dtype, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(DTYPES[dtype])


def _int(value):
    return np.array(value, np.int32)


def _out(shape, dtype):
    return Output(tuple(shape), DTYPES[dtype] if dtype != "bfloat" else np.dtype(np.uint16))


def softmax(dtype, size, looped=False):
    """exp is metal::fast, off by 3 + floor(2 |x|) units; the sum and the quotient add a few."""
    x = _draw(size, (3, size), dtype, 3)
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    threads = 1024 if looped else min(1024, -(-size // 128) * 32)
    bound = y * (UNIT[dtype] + 2.0**-24 * (24 + 2 * np.ptp(wide))) + SMALLEST[dtype]
    kernel = "softmax_looped" if looped else "softmax_single_row"
    return Launch(header("softmax.h"), kernel, f"{dtype}, float", {0: x, 1: _out(x.shape, dtype), 2: _int(size)}, 1, (3, 1, 1), (threads, 1, 1), y, bound)  # fmt: skip


def logsumexp(dtype, size, looped=False):
    x = _draw(size, (4, size), dtype, 3)
    wide = x.astype(np.float64)
    y = np.log(np.exp(wide).sum(-1))
    threads = 1024 if looped else min(1024, -(-size // 128) * 32)
    bound = np.abs(y) * (UNIT[dtype] + 2.0**-22) + 2.0**-24 * (24 + 2 * np.ptp(wide))
    kernel = "logsumexp_looped" if looped else "logsumexp"
    return Launch(header("logsumexp.h"), kernel, f"{dtype}, float", {0: x, 1: _out((4,), dtype), 2: _int(size)}, 1, (4, 1, 1), (threads, 1, 1), y, bound)  # fmt: skip


def _attention(q, k, v, scale, causal):
    """Scores, weights and values in float64; heads of q share those of k and v. Also what the bound is made of."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    share = q.shape[0] // k.shape[0]
    k, v = k.repeat(share, 0), v.repeat(share, 0)
    scores = q @ k.swapaxes(-1, -2) * scale
    if causal:
        rows, columns = scores.shape[-2:]
        scores = np.where(np.arange(columns) <= np.arange(rows)[:, None] + columns - rows, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    spread = np.abs(q) @ np.abs(k).swapaxes(-1, -2).max(-1, keepdims=True) * scale
    return weights @ v, weights @ np.abs(v), spread


def _attention_bound(dtype, dim, y, magnitude, spread):
    """Each weight is off by its score's error (dim products of float) and, in a matrix product, by one rounding."""
    return UNIT[dtype] * (np.abs(y) + 3 * magnitude) + magnitude * 2.0**-24 * (32 + (dim + 8) * 2 * spread)


def sdpa_vector(dtype, dim, keys, causal=False):
    q, k, v = _draw(1, (4, 2, dim), dtype), _draw(2, (2, keys, dim), dtype), _draw(3, (2, keys, dim), dtype)
    scale = dim**-0.5
    y, magnitude, spread = _attention(q, k, v, scale, causal)
    strides = {6: keys * dim, 7: dim, 8: keys * dim, 9: dim}
    buffers = {0: q, 1: k, 2: v, 3: _out(y.shape, dtype), 4: _int(2), 5: _int(keys), 10: np.array(scale, np.float32)}
    buffers |= {index: np.array(stride, np.uint64) for index, stride in strides.items()}
    bound = _attention_bound(dtype, dim, y, magnitude, spread)
    constants = {20: False, 21: False, 22: causal, 23: False, 24: False, 25: False}
    return Launch(header("sdpa_vector.h"), "sdpa_vector", f"{dtype}, {dim}", buffers, 3, (4, 2, 1), (1024, 1, 1), y, bound, constants)  # fmt: skip


def _quantized(dtype, rows, columns, group, bits):
    weights = mx.random.normal(shape=(rows, columns), key=mx.random.key(bits), stream=mx.cpu)
    packed, scales, biases = mx.quantize(weights, group, bits, stream=mx.cpu)
    scales, biases = (np.array(part).astype(DTYPES[dtype]) for part in (scales, biases))
    wide = [mx.array(part.astype(np.float32)) for part in (scales, biases)]
    exact = np.array(mx.dequantize(packed, *wide, group, bits, stream=mx.cpu)).astype(np.float64)
    return np.array(packed), scales, biases, exact


def _product_bound(dtype, x, w, y, roundings):
    size = x.shape[-1]
    magnitude = np.abs(x) @ np.abs(w).T
    return UNIT[dtype] * (np.abs(y) + roundings * magnitude) + (size + 8) * 2.0**-23 * magnitude


def qmv(dtype, bits, group=64):
    rows, columns = 16, 512
    packed, scales, biases, w = _quantized(dtype, rows, columns, group, bits)
    x = _draw(5, (3, columns), dtype)
    wide = x.astype(np.float64)
    y = wide @ w.T
    nothing = {index: np.zeros(1, np.int64) for index in (9, 12, 13, 14)} | {8: _int([1]), 11: _int([1])}
    buffers = {0: packed, 1: scales, 2: biases, 3: x, 4: _out(y.shape, dtype), 5: _int(columns), 6: _int(rows), 7: _int(0), 10: _int(0)}  # fmt: skip
    # scale * sum and bias * sum are formed apart: their magnitudes count, not that of their sum
    bound = 4 * _product_bound(dtype, wide, np.abs(w) + np.abs(biases.astype(float)).max(), y, 0)
    return Launch(header("quantized.h", "steel/gemm/gemm.h", "quantized_utils.h"), "affine_qmv_fast", f"{dtype}, {group}, {bits}, false", buffers | nothing, 4, (3, rows // 8, 1), (32, 2, 1), y, bound)  # fmt: skip


def qmm(dtype, bits, group=64):
    rows, columns, count = 40, 128, 37
    packed, scales, biases, w = _quantized(dtype, rows, columns, group, bits)
    x = _draw(6, (count, columns), dtype)
    wide = x.astype(np.float64)
    y = wide @ w.T
    nothing = {index: np.zeros(1, np.int64) for index in (10, 13, 14, 15)} | {9: _int([1]), 12: _int([1])}
    buffers = {0: packed, 1: scales, 2: biases, 3: x, 4: _out(y.shape, dtype), 5: _int(columns), 6: _int(rows), 7: _int(count), 8: _int(0), 11: _int(0)}  # fmt: skip
    bound = _product_bound(dtype, wide, np.abs(w) + np.abs(biases.astype(float)).max(), y, 3)  # weights are rounded
    return Launch(header("quantized.h", "steel/gemm/gemm.h", "quantized_utils.h"), "affine_qmm_t", f"{dtype}, {group}, {bits}, false, false", buffers | nothing, 4, (2, 2, 1), (32, 2, 2), y, bound)  # fmt: skip


def gemm(dtype, shape=(64, 64, 32), transpose_b=False):
    m, n, k = shape
    a, b = _draw(7, (m, k), dtype), _draw(8, (n, k) if transpose_b else (k, n), dtype)
    w = (b if transpose_b else b.T).astype(np.float64)
    wide = a.astype(np.float64)
    y = wide @ w.T
    tiles_m, tiles_n = -(-m // 32), -(-n // 32)
    numbers = (m, n, k, k, b.shape[1], n, tiles_n, tiles_m, 0, 0, 0, 0, k // 16, 1)
    params = np.frombuffer(struct.pack("8i3q3i4x", *numbers), np.uint8)
    constants = {10: False, 100: False, 110: False, 200: m % 32 == 0, 201: n % 32 == 0, 202: k % 16 == 0}
    template = f"{dtype}, 32, 32, 16, 2, 2, false, {str(transpose_b).lower()}"
    return Launch(header("steel/gemm/kernels/steel_gemm_fused.h", "steel/gemm/gemm.h"), "gemm", template, {0: a, 1: b, 3: _out(y.shape, dtype), 4: params}, 3, (tiles_n, tiles_m, 1), (32, 2, 2), y, _product_bound(dtype, wide, w, y, 0), constants)  # fmt: skip


def attention(dtype, dim=64, length=64, causal=False):
    q, k, v = (_draw(seed, (2, length, dim), dtype) for seed in (9, 10, 11))
    scale = dim**-0.5
    y, magnitude, spread = _attention(q, k, v, scale, causal)
    bq, bk = 32, 32 if dim < 128 else 16
    blocks_q, blocks_k = -(-length // bq), -(-length // bk)
    strides = (2 * length * dim, length * dim, dim)
    numbers = (1, 2, dim, length, length, 1, scale, blocks_q, blocks_k, length // bq, length // bk, length % bq, length % bk, 0)  # fmt: skip
    params = np.frombuffer(struct.pack("6if7i12q", *numbers, *strides * 4), np.uint8)
    constants = {200: length % bq == 0, 201: length % bk == 0, 300: False, 301: causal, 302: False, 303: False}
    bound = _attention_bound(dtype, dim, y, magnitude, spread)
    return Launch(header("steel/attn/kernels/steel_attention.h"), "attention", f"{dtype}, {bq}, {bk}, {dim}, {dim}, 4, 1", {0: q, 1: k, 2: v, 3: _out(y.shape, dtype), 4: params}, 3, (blocks_q, 2, 1), (32, 4, 1), y, bound, constants)  # fmt: skip


CONFIGURATIONS = {
    **{f"softmax-{t}-{n}": (softmax, t, n) for t in DTYPES for n in (100, 513)},
    **{f"softmax-looped-{t}": (softmax, t, 1100, True) for t in DTYPES},
    **{f"logsumexp-{t}": (logsumexp, t, 300) for t in DTYPES},
    **{f"logsumexp-looped-{t}": (logsumexp, t, 700, True) for t in DTYPES},
    **{f"sdpa_vector-{t}-{d}": (sdpa_vector, t, d, 75) for t in DTYPES for d in (64, 128)},
    **{f"sdpa_vector-causal-{t}": (sdpa_vector, t, 64, 40, True) for t in DTYPES},
    **{f"qmv-{t}-{b}": (qmv, t, b) for t in DTYPES for b in (2, 3, 4, 8)},
    **{f"qmm-{t}-{b}": (qmm, t, b) for t in DTYPES for b in (4, 8)},
    **{f"gemm-{t}": (gemm, t) for t in DTYPES},
    **{f"gemm-ragged-{t}": (gemm, t, (45, 70, 37), True) for t in DTYPES},
    **{f"attention-{t}": (attention, t) for t in DTYPES},
    **{f"attention-ragged-{t}": (attention, t, 64, 83) for t in DTYPES},
    **{f"attention-causal-{t}": (attention, t, 128, 70, True) for t in DTYPES},
}


def configuration(name):
    make, *arguments = CONFIGURATIONS[name]
    return make(*arguments)

"""Matrix products and convolutions."""

from __future__ import annotations

import string

import torch
from torch.nn import functional

import m2ml
from m2ml_torch.arrays import wide
from m2ml_torch.rules.structure import padded
from m2ml_torch.rules.table import out_dtype, rules


def operand(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    """In the dtype that the products accumulate in: that of the result, or int64."""
    dtype = out_dtype(equation)
    return x.to(dtype) if dtype.is_floating_point or dtype.is_complex else wide(x).to(torch.int64)


@rules.define("dot_general")
def dot_general(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    (x_sum, y_sum), (x_batch, y_batch) = equation.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    of_x = [next(letters) for _ in range(x.ndim)]
    of_y = [next(letters) for _ in range(y.ndim)]
    for i, j in (*zip(x_sum, y_sum, strict=True), *zip(x_batch, y_batch, strict=True)):
        of_y[j] = of_x[i]
    batch = [of_x[i] for i in x_batch]
    free_x = [a for i, a in enumerate(of_x) if i not in (*x_sum, *x_batch)]
    free_y = [a for j, a in enumerate(of_y) if j not in (*y_sum, *y_batch)]
    formula = f"{''.join(of_x)},{''.join(of_y)}->{''.join((*batch, *free_x, *free_y))}"
    return torch.einsum(formula, operand(equation, x), operand(equation, y)).to(out_dtype(equation))


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@rules.define("conv_general_dilated")
def conv_general_dilated(equation: m2ml.Equation, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """``x`` [n, c, *spatial] with ``w`` [o, i, *kernel]; groups of the batch become groups of the features."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    x, w = operand(equation, x).permute(numbers.lhs_spec), operand(equation, w).permute(numbers.rhs_spec)
    config = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
    x = padded(x, 0, [(0, 0, 0), (0, 0, 0), *config])
    groups = params["feature_group_count"]
    if params["batch_group_count"] > 1:
        groups = params["batch_group_count"]
        split = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
        x = split.transpose(0, 1).reshape(x.shape[0] // groups, groups * x.shape[1], *x.shape[2:])
    order = sorted(range(x.ndim), key=lambda axis: numbers.out_spec[axis])
    if 0 in equation.shape or w.ndim - 2 not in _CONVOLUTIONS:
        if w.ndim - 2 not in _CONVOLUTIONS:
            raise m2ml.UnsupportedPrimitive(f"torch convolves 1 to 3 spatial axes, not {equation.describe()}")
        return torch.zeros(equation.shape, dtype=out_dtype(equation), device=x.device)
    convolve = _CONVOLUTIONS[w.ndim - 2]
    out = convolve(x, w, stride=params["window_strides"], dilation=params["rhs_dilation"], groups=groups)
    return out.permute(order).to(out_dtype(equation))

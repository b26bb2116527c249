"""Where a gather reads and a scatter writes, in the form MLX's indexing takes.

MLX checks no index, and a wrong one can end the process: every index that leaves this module is in bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import mlx.core as mx
from jax.lax import GatherScatterMode

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import UNSIGNED, cast, constant_like, is_unsigned

#: The axes of an array by what they run along: operand axis ``d`` is ``d``, batch axis ``i`` is ``~i``.
Labels = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """One window of ``sizes`` into an operand of ``shape`` for each position of ``batch``.

    ``columns`` says which component of an index vector starts the window on an operand axis, ``paired`` which
    batch axis an operand axis runs along with. ``labels`` are the axes of the gather's output or the scatter's
    updates. ``dropping``: a window that does not fit is left out; otherwise it is moved until it fits.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    batch: tuple[int, ...]
    columns: Mapping[int, int]
    paired: Mapping[int, int]
    labels: Labels
    dropping: bool

    @classmethod
    def of_gather(cls, equation: Equation) -> Windows:
        numbers, (operand, indices) = equation.params["dimension_numbers"], equation.inputs
        absent = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        return cls(
            shape=tuple(operand.shape),
            sizes=tuple(int(n) for n in equation.params["slice_sizes"]),
            batch=tuple(indices.shape[:-1]),
            columns={int(d): i for i, d in enumerate(numbers.start_index_map)},
            paired=_pairs(numbers.operand_batching_dims, numbers.start_indices_batching_dims),
            labels=_labels(operand.ndim, len(equation.shape), numbers.offset_dims, absent),
            dropping=equation.params["mode"] == GatherScatterMode.FILL_OR_DROP,
        )

    @classmethod
    def of_scatter(cls, equation: Equation) -> Windows:
        numbers, (operand, indices, updates) = equation.params["dimension_numbers"], equation.inputs
        absent = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        labels = _labels(operand.ndim, updates.ndim, numbers.update_window_dims, absent)
        return cls(
            shape=tuple(operand.shape),
            sizes=tuple(1 if d in absent else updates.shape[labels.index(d)] for d in range(operand.ndim)),
            batch=tuple(indices.shape[:-1]),
            columns={int(d): i for i, d in enumerate(numbers.scatter_dims_to_operand_dims)},
            paired=_pairs(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims),
            labels=labels,
            dropping=equation.params["mode"] != GatherScatterMode.CLIP,
        )

    @cached_property
    def moving(self) -> tuple[int, ...]:
        """The operand axes that a window does not span."""
        return tuple(d for d, (n, size) in enumerate(zip(self.shape, self.sizes, strict=True)) if size < n)

    @cached_property
    def spanned(self) -> tuple[int, ...]:
        return tuple(d for d in range(len(self.shape)) if d not in self.moving)

    @cached_property
    def partial(self) -> tuple[int, ...]:
        """The moving axes along which a window has several elements."""
        return tuple(d for d in self.moving if self.sizes[d] > 1)

    @cached_property
    def batch_labels(self) -> Labels:
        return tuple(~i for i in range(len(self.batch)))

    @property
    def count(self) -> int:
        """The number of windows."""
        return math.prod(self.batch)

    def raw_starts(self, indices: mx.array) -> dict[int, mx.array]:
        """The start of the windows per indexed operand axis, as it came, at least 32 bits wide."""
        if indices.dtype.size < 4:
            indices = indices.astype(mx.int32)
        if len(self.columns) == 1:
            return {d: mx.squeeze(indices, -1) for d in self.columns}
        return {d: indices[..., i] for d, i in self.columns.items()}

    def starts(self, indices: mx.array) -> tuple[dict[int, mx.array], mx.array | None]:
        """The start of the windows per indexed operand axis, in bounds, and which windows are not left out."""
        starts, fits = {}, []
        for d, start in self.raw_starts(indices).items():
            limit = self.shape[d] - self.sizes[d]
            if self.dropping:
                start = cast(start, UNSIGNED[start.dtype.size])
                fits.append(start <= constant_like(start, limit))
            starts[d] = bounded(start, limit)
        return starts, reduce(mx.logical_and, fits) if fits else None

    def spread(self, mask: mx.array) -> mx.array:
        """A mask over the batch axes, to be broadcast along the axes of the windows."""
        along_windows = [i for i, axis in enumerate(self.labels) if axis >= 0]
        return mx.expand_dims(mask, along_windows) if along_windows else mask

    def origin(self, starts: Mapping[int, mx.array]) -> tuple[mx.array, tuple[int, ...]]:
        """The start of the only window and the axes it is given for."""
        axes = tuple(d for d in self.moving if d in starts)
        if not axes:
            return mx.zeros((1,), mx.int32), (0,)
        return mx.concatenate([starts[d].reshape(1) for d in axes]), axes

    def index_arrays(self, starts: Mapping[int, mx.array]) -> list[mx.array]:
        """One index array per moving axis; together they broadcast to the batch axes and the partial axes."""
        dtype = next((s.dtype for s in starts.values()), mx.uint32)
        rank = len(self.batch) + len(self.partial)
        arrays = [self._index_array(d, starts, dtype, rank) for d in self.moving]
        if not any(d in starts for d in self.moving):
            arrays[0] = mx.broadcast_to(arrays[0], (*self.batch, *(self.sizes[d] for d in self.partial)))
        return arrays

    def _index_array(self, d: int, starts: Mapping[int, mx.array], dtype: mx.Dtype, rank: int) -> mx.array:
        parts = []
        if d in starts:
            parts.append(starts[d].reshape(self.batch + (1,) * len(self.partial)))
        elif d in self.paired:
            parts.append(iota(self.shape[d], dtype, rank, self.paired[d]))
        if d in self.partial:
            parts.append(iota(self.sizes[d], dtype, rank, len(self.batch) + self.partial.index(d)))
        return sum(parts[1:], parts[0]) if parts else mx.zeros((1,) * rank, dtype)


def _pairs(operand_axes: Sequence[int], batch_axes: Sequence[int]) -> dict[int, int]:
    return {int(d): int(i) for d, i in zip(operand_axes, batch_axes, strict=True)}


def _labels(operand_rank: int, rank: int, window_axes: Sequence[int], absent: set[int]) -> Labels:
    along_windows = iter(d for d in range(operand_rank) if d not in absent)
    along_batch = iter(range(rank))
    return tuple(next(along_windows) if axis in window_axes else ~next(along_batch) for axis in range(rank))


def iota(size: int, dtype: mx.Dtype, rank: int, axis: int) -> mx.array:
    """0, 1, 2, ... along ``axis`` of an array of ``rank`` axes."""
    return mx.arange(size, dtype=dtype).reshape((1,) * axis + (size,) + (1,) * (rank - axis - 1))


def bounded(start: mx.array, limit: int) -> mx.array:
    """``start`` moved into ``0 .. limit``, 32 bits wide."""
    if start.dtype.size < 4:
        start = start.astype(mx.int32)
    if not is_unsigned(start):
        start = mx.maximum(start, constant_like(start, 0))
    start = mx.minimum(start, constant_like(start, limit))
    return start if start.dtype.size <= 4 else start.astype(mx.int32)


def arrange(x: mx.array, labels: Labels, wanted: Labels, shape: Sequence[int]) -> mx.array:
    """``x`` with its axes in the order ``wanted``; axes it lacks are broadcast, those not wanted have one element."""
    order = [labels.index(axis) for axis in wanted if axis in labels]
    order += [i for i, axis in enumerate(labels) if axis not in wanted]
    if order != sorted(order):
        x = x.transpose(order)
    own = tuple(n if axis in labels else 1 for axis, n in zip(wanted, shape, strict=True))
    if x.shape != own:
        x = x.reshape(own)
    return x if own == tuple(shape) else mx.broadcast_to(x, tuple(shape))

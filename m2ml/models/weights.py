"""Parameters of a `Decoder` and the tensors of a checkpoint they are made of, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.models.decoder_config import DecoderConfig
from m2ml.models.spelling import Spelling
from m2ml.ops import Quantized

#: Where a parameter stands in the tree of parameters.
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: its name and the shape it must have, in the order in which it is stored."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """Rows of a tensor in another order: ``by_head``, those of query, key and value of one head after the other; or in
    pairs (2i, 2i + 1) of each head, as GGUF has those of queries and keys, where ours are halves (i, i + dim / 2).
    """

    rows: int
    head_dim: int
    by_head: bool = False

    def taken(self) -> Any:
        """The row of the tensor that comes ``i``-th here."""
        rows = np.arange(self.rows)
        if self.by_head:
            return rows.reshape(-1, 3, self.head_dim).transpose(1, 0, 2).reshape(-1)
        return rows.reshape(-1, self.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


@dataclass(frozen=True)
class Source:
    """A parameter and the tensors it is made of: ``parts`` joined along rows, or one per expert, stacked.

    ``orders`` are those of the rows of each part, None where they stay. ``transposed``: they are stored ``[in, out]``.
    ``axes``: the stored ones in the parameter's order, where that is another.
    """

    path: Path
    parts: tuple[Tensor, ...]
    orders: tuple[Order | None, ...] = ()
    transposed: bool = False
    experts: int = 0
    axes: tuple[int, ...] = ()

    @property
    def _expert_by_expert(self) -> bool:
        return self.experts > 0 and len(self.parts[0].shape) == 2

    def joined(self, tensors: Sequence[Any]) -> Any:
        """The parameter: an array or a `Quantized` one, or a tuple where the parts are of different formats."""
        found = [x.T for x in tensors] if self.transposed else list(tensors)
        if self.axes:
            found = [x.transpose(self.axes) for x in found]
        for i, order in enumerate(self.orders):
            if order is not None:
                found[i] = _taken(found[i], order.taken())
        if not self._expert_by_expert:
            return _together(found, np.concatenate, axis=1 if self.experts else 0)
        each = len(found) // self.experts
        experts = [_together(found[i : i + each], np.concatenate, axis=0) for i in range(0, len(found), each)]
        return _together(experts, np.stack, axis=0)

    def split(self, value: Any) -> list[Any]:
        """The inverse of `joined`, for saving."""
        if self._expert_by_expert:
            each = len(self.parts) // self.experts
            found = [
                piece
                for e in range(self.experts)
                for piece in _pieces(_taken(value, e), self.parts[e * each : (e + 1) * each], axis=0)
            ]
        elif isinstance(value, tuple):
            found = list(value)
        else:
            found = _pieces(
                value, self.parts, axis=1 if self.experts or self.transposed else 0, of_rows=self.transposed
            )
        for i, order in enumerate(self.orders):
            if order is not None:
                found[i] = _taken(found[i], np.argsort(order.taken()))
        return [np.ascontiguousarray(x.T) for x in found] if self.transposed else found


def each_array(value: Any, function: Callable[[Any], Any]) -> Any:
    """``function`` of an array, or of the arrays of a `Quantized` one."""
    if not isinstance(value, Quantized):
        return function(value)
    biases = None if value.biases is None else function(value.biases)
    return dataclasses.replace(value, packed=function(value.packed), scales=function(value.scales), biases=biases)


def _format(value: Any) -> Any:
    return (value.bits, value.group_size, value.mode) if isinstance(value, Quantized) else None


def _together(parts: Sequence[Any], join: Callable[..., Any], *, axis: int) -> Any:
    """Parts of one format as one; a tuple of parts of different formats."""
    if len(parts) == 1 and join is np.concatenate:
        return parts[0]
    if len({_format(part) for part in parts}) > 1:
        return tuple(parts)
    if not isinstance(parts[0], Quantized):
        return join(parts, axis=axis)
    arrays = [(part.packed, part.scales, part.biases) for part in parts]
    packed, scales, biases = (None if xs[0] is None else join(xs, axis=axis) for xs in zip(*arrays, strict=True))
    return dataclasses.replace(parts[0], packed=packed, scales=scales, biases=biases)


def _taken(value: Any, rows: Any) -> Any:
    return each_array(value, lambda x: x[rows])


def _pieces(value: Any, parts: Sequence[Tensor], *, axis: int, of_rows: bool = False) -> list[Any]:
    """``value`` cut into parts along the axis of rows, which is ``axis`` of the stored tensors."""
    ends = np.cumsum([part.shape[axis] for part in parts]).tolist()
    cuts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    if axis == 0 or of_rows:
        return [_taken(value, cut) for cut in cuts]
    return [_taken(value, (slice(None), cut)) for cut in cuts]


def sources(config: DecoderConfig, spelling: Spelling, names: Mapping[str, Any] | None = None) -> Iterator[Source]:
    """Every parameter of ``config``; ``names`` are those of the file, which decide between its possible forms.

    The largest come first, before most of the memory is taken: what is made on the way to them comes on top of it.
    """
    known = names if names is not None else {}
    embed = config.embed_dim
    yield Source(("tokens", "weight"), (Tensor(f"{spelling.tokens}.weight", (config.vocab_size, embed)),))
    if not config.tied:
        yield Source(("head", "weight"), (Tensor(f"{spelling.head}.weight", (config.vocab_size, embed)),))
    if config.learned_positions:
        yield Source(("positions", "weight"), (Tensor(f"{spelling.positions}.weight", (config.context, embed)),))
    for i, block in enumerate(config.blocks):
        yield from _of_block(config, spelling, i)
        if block.sparse:
            yield from _of_experts(config, spelling, i, known)
        else:
            yield from _of_mlp(config, spelling, i)
    yield from _norm(config, ("norm",), spelling.norm, embed)


def _norm(config: DecoderConfig, path: Path, name: str, size: int) -> Iterator[Source]:
    yield Source((*path, "weight"), (Tensor(f"{name}.weight", (size,)),))
    if config.norm == "layer":
        yield Source((*path, "bias"), (Tensor(f"{name}.bias", (size,)),))


def _linear(
    path: Path,
    names: Sequence[str],
    rows: Sequence[int],
    inputs: int,
    *,
    bias: bool,
    transposed: bool = False,
    orders: tuple[Order | None, ...] = (),
) -> Iterator[Source]:
    shapes = [(inputs, n) if transposed else (n, inputs) for n in rows]
    weights = tuple(Tensor(f"{name}.weight", shape) for name, shape in zip(names, shapes, strict=True))
    yield Source((*path, "weight"), weights, orders, transposed)
    if bias:
        yield Source(
            (*path, "bias"), tuple(Tensor(f"{n}.bias", (r,)) for n, r in zip(names, rows, strict=True)), orders
        )


def _of_block(config: DecoderConfig, spelling: Spelling, i: int) -> Iterator[Source]:
    at, start, rows = ("blocks", i), spelling.block.format(i), config.qkv_rows
    for kind, there in (("norm", config.pre_norms), ("post_norm", config.post_norms)):
        for part in ("attention", "mlp") if there else ():
            name = getattr(spelling, f"{part}_{kind}")
            yield from _norm(config, (*at, f"{part}_{kind}"), start + name, config.embed_dim)
    for j, which in enumerate(("q_norm", "k_norm") if config.qk_norm else ()):
        size = config.head_dim if config.qk_norm == "head" else rows[j]
        yield from _norm(config, (*at, "attention", which), start + getattr(spelling, which), size)
    names = [start + name for name in spelling.qkv]
    orders: tuple[Order | None, ...] = ()
    if spelling.qkv_by_head:
        orders = (Order(sum(rows), config.head_dim, by_head=True),)
    if spelling.interleaved_rope:
        orders = (Order(rows[0], config.head_dim), Order(rows[1], config.head_dim), None)
    yield from _linear(
        (*at, "attention", "qkv"),
        names,
        rows if len(names) > 1 else (sum(rows),),
        config.embed_dim,
        bias=config.qkv_bias,
        transposed=spelling.transposed,
        orders=orders,
    )
    yield from _linear(
        (*at, "attention", "out"),
        [start + spelling.out],
        [config.embed_dim],
        rows[0],
        bias=config.out_bias,
        transposed=spelling.transposed,
    )


def _of_mlp(config: DecoderConfig, spelling: Spelling, i: int) -> Iterator[Source]:
    at, start, wide = ("blocks", i, "mlp"), spelling.block.format(i), config.mlp_dim
    names = [start + name for name in (spelling.up if config.gated else spelling.up[-1:])]
    rows = [wide] * len(names) if len(names) > 1 else [wide * (2 if config.gated else 1)]
    both: dict[str, Any] = {"bias": config.mlp_bias, "transposed": spelling.transposed}
    yield from _linear((*at, "up"), names, rows, config.embed_dim, **both)
    yield from _linear((*at, "down"), [start + spelling.down], [config.embed_dim], wide, **both)


def _of_experts(config: DecoderConfig, spelling: Spelling, i: int, known: Mapping[str, Any]) -> Iterator[Source]:
    assert config.experts is not None
    at, start = ("blocks", i, "mlp"), spelling.block.format(i)
    count, wide, embed = config.experts.count, config.experts.mlp_dim, config.embed_dim
    yield from _linear((*at, "router"), [start + spelling.router], [count], embed, bias=False)
    theirs = (spelling.experts_up, spelling.experts_down, spelling.stacked_suffix)
    by_mlx = (
        tuple(spelling.by_mlx + name for name in ("gate_proj", "up_proj")),
        f"{spelling.by_mlx}down_proj",
        ".weight",
    )
    stacked = next((form for form in (theirs, by_mlx) if start + form[1] + form[2] in known), None)
    if not spelling.expert:
        stacked = theirs
    if stacked is not None:
        up_names, down_name, suffix = stacked
        ups = tuple(Tensor(start + name + suffix, (count, 2 * wide // len(up_names), embed)) for name in up_names)
        downs: tuple[Tensor, ...] = (Tensor(start + down_name + suffix, (count, embed, wide)),)
    else:
        each = [start + spelling.expert.format(e) for e in range(count)]
        ups = tuple(Tensor(f"{one}{name}.weight", (wide, embed)) for one in each for name in spelling.expert_up)
        downs = tuple(Tensor(f"{one}{spelling.expert_down}.weight", (embed, wide)) for one in each)
    yield Source((*at, "up"), ups, experts=count)
    yield Source((*at, "down"), downs, experts=count)

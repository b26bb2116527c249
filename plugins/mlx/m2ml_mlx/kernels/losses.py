"""Cross-entropy on Metal: one pass over the logits for losses, one for their gradient, and a linear layer before."""

from __future__ import annotations

from typing import Any

from m2ml_mlx.kernels.shared import rows_of
from m2ml_mlx.kernels.source import MOST_ELEMENTS, Source, each_row, worthwhile

ROWS = Source("metal", "softmax_cross_entropy", ("logits", "labels", "numbers", "ignore_index"), ("losses", "lse"))
GRADIENT = Source(
    "metal",
    "softmax_cross_entropy_backward",
    ("logits", "labels", "lse", "of_loss", "of_lse", "numbers", "ignore_index"),
    ("gradient",),
)

#: Logits of one block of rows: 32 MiB of float32.
LOGITS = 1 << 23


def _numbers(static: Any) -> Any:
    import mlx.core as mx

    return mx.array([static["label_smoothing"], static["z_loss"], static.get("soft_cap") or 1.0], mx.float32)


def _rows(logits: Any, labels: Any, static: Any) -> Any:
    """Losses and lse ``[rows]`` in float32 of logits ``[rows, v]``."""
    import mlx.core as mx

    out = (labels.shape, mx.float32)
    types = {"CAPPED": static.get("soft_cap") is not None, "SMOOTHED": bool(static["label_smoothing"])}
    given = logits, labels, _numbers(static), int(static["ignore_index"])
    return ROWS(*given, out=[out, out], threads=each_row(*logits.shape), **types)


def _gradient(logits: Any, labels: Any, lse: Any, of_loss: Any, of_lse: Any, static: Any) -> Any:
    rows, size = logits.shape
    given = logits, labels, lse, of_loss, of_lse, _numbers(static), int(static["ignore_index"])
    types = {"T": logits.dtype, "CAPPED": static.get("soft_cap") is not None}
    return GRADIENT(*given, out=[(logits.shape, logits.dtype)], threads=(size, rows, 256), **types)[0]


def softmax_cross_entropy(logits: Any, labels: Any, *, return_lse: bool, **static: Any) -> Any:
    import mlx.core as mx

    losses, lse = _rows(rows_of(logits), labels.astype(mx.int32).reshape(-1), static)
    losses, lse = losses.reshape(labels.shape), lse.reshape(labels.shape)
    return (losses, lse) if return_lse else losses


def softmax_cross_entropy_backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Any, static: Any) -> Any:
    import mlx.core as mx

    logits, labels = args
    of_loss = cotangents[0]
    of_lse = cotangents[1] if len(cotangents) > 1 else mx.zeros_like(of_loss)
    targets = labels.astype(mx.int32)
    targets, lse, of_loss, of_lse = (x.reshape(-1) for x in (targets, outputs[1], of_loss, of_lse))
    return (_gradient(rows_of(logits), targets, lse, of_loss, of_lse, dict(static)).reshape(logits.shape),)


def linear_cross_entropy(hidden: Any, weight: Any, labels: Any, **static: Any) -> Any:
    """As the op; a block of rows follows the one before, so that one block of logits is there at a time."""
    import mlx.core as mx

    wanted = static["with_gradients"] and static["reduction"] != "none"
    flat, table = rows_of(hidden).astype(mx.float32), weight.astype(mx.float32)
    targets = labels.astype(mx.int32).reshape(-1)
    share = (targets != static["ignore_index"]).astype(mx.float32)
    if static["reduction"] == "mean":
        share = share / mx.maximum(share.sum(), 1)
    step = static["rows"] or max(LOGITS // len(table), 1)
    d_weight = mx.zeros(table.shape)
    losses: list[Any] = []
    d_hidden: list[Any] = []
    for start in range(0, len(flat), step):
        block = slice(start, start + step)
        (rows,) = mx.depends([flat[block]], [d_weight, *losses[-1:]])
        logits = rows @ table.T
        found, lse = _rows(logits, targets[block], static)
        losses.append(found)
        if wanted:
            d = _gradient(logits, targets[block], lse, share[block], mx.zeros_like(lse), static)
            d_hidden.append(d @ table)
            d_weight = d_weight + d.T @ rows
    every = mx.concatenate(losses)
    if static["reduction"] == "none":
        return every.reshape(labels.shape)
    loss = (every * share).sum()
    return (loss, mx.concatenate(d_hidden).reshape(hidden.shape), d_weight) if wanted else loss


def some_rows(logits: Any, labels: Any, **static: Any) -> str:
    return worthwhile(logits)


def some_rows_backward(args: Any, *rest: Any, **static: Any) -> str:
    return worthwhile(args[0])


def some_tokens(hidden: Any, weight: Any, labels: Any, **static: Any) -> str:
    """However few: the logits, and passes over them, are what it saves."""
    if not hidden.size:
        return "there are no elements"
    most = max(LOGITS, weight.shape[0] * (static["rows"] or 1))
    return "a block has more logits than it counts" if most >= MOST_ELEMENTS else ""

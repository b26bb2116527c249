"""AdamW over a whole tree of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_at_least, require_floating, require_integers, wide
from m2ml.ops.inputs import normal

if TYPE_CHECKING:
    import optax

Array = jax.Array

_NAME = "adamw_update"


@op(shapes="count[], learning_rate[] -> [...]")
def adamw_update(
    gradients: Any,
    mu: Any,
    nu: Any,
    params: Any,
    count: Array,
    learning_rate: Array,
    /,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
    decayed: tuple[bool, ...] | None = None,
    apply: bool = False,
) -> tuple[Any, Any, Any]:
    """One step of AdamW (Loshchilov and Hutter, 2019) on every leaf of ``params``; gives ``(updates, mu, nu)``.

    ``gradients``, the moments ``mu`` and ``nu`` and ``params`` are trees of equal structure and shapes. With ``count``
    steps done before, an integer scalar, and t = count + 1::

        mu = b1 mu + (1 - b1) g                nu = b2 nu + (1 - b2) g**2
        step = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t) + eps_root) + eps)
        update = -learning_rate (step + weight_decay param)

    The decay is decoupled and spares the leaves for which ``decayed``, one boolean per leaf in their order, is False.
    With ``apply`` the first result is ``params + update``, otherwise the update itself, as Optax has it. Each result
    has the dtype of the parameter or moment it belongs to; half precision is worked out in float32 and rounded once,
    where Optax rounds every operation. Raises ValueError where the trees or shapes differ, or ``decayed`` does not have
    one entry per leaf; TypeError where a leaf is not floating or ``count`` no integer.
    """
    decay = _checked(gradients, mu, nu, params, count, learning_rate, decayed)
    require(_NAME, 0 <= b1 < 1 and 0 <= b2 < 1, f"b1 is {b1} and b2 {b2}; both must be from 0 to below 1")
    require_at_least(_NAME, 0, eps=eps, eps_root=eps_root)
    steps = count.astype(jnp.float32) + 1
    corrections = 1 - b1**steps, 1 - b2**steps

    def leaf(g: Array, m: Array, v: Array, p: Array, decays: bool) -> tuple[Array, Array, Array]:
        wide_g, wide_p = wide(g), wide(p)
        new_m = (1 - b1) * wide_g + b1 * wide(m)
        new_v = (1 - b2) * (wide_g * wide_g) + b2 * wide(v)
        step = (new_m / corrections[0]) / (jnp.sqrt(new_v / corrections[1] + eps_root) + eps)
        step = step + weight_decay * wide_p if decays and weight_decay else step
        update = -learning_rate.astype(step.dtype) * step
        first = wide_p + update if apply else update
        return first.astype(p.dtype), new_m.astype(m.dtype), new_v.astype(v.dtype)

    leaves, tree = jax.tree.flatten(params)
    others = (jax.tree.leaves(x) for x in (gradients, mu, nu))
    results = [leaf(*arrays) for arrays in zip(*others, leaves, decay, strict=True)]
    first, new_mu, new_nu = (jax.tree.unflatten(tree, [r[i] for r in results]) for i in range(3))
    return first, new_mu, new_nu


def _checked(
    gradients: Any, mu: Any, nu: Any, params: Any, count: Any, learning_rate: Any, decayed: tuple[bool, ...] | None
) -> tuple[bool, ...]:
    """Which leaves decay, once the arguments are found to fit together."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    tree: Any = jax.tree.structure(params)
    for name, other in (("gradients", gradients), ("mu", mu), ("nu", nu)):
        same = jax.tree.structure(other) == tree
        require(_NAME, same, f"{name} has the structure {jax.tree.structure(other)} but params has {tree}")
        for (path, p), x in zip(paths, jax.tree.leaves(other), strict=True):
            where = jax.tree_util.keystr(path)
            said = f"{name}{where} is {list(x.shape)} but params{where} is {list(p.shape)}; they must be alike"
            require(_NAME, x.shape == p.shape, said)
            require_floating(_NAME, **{f"{name}{where}": x, f"params{where}": p})
    require_integers(_NAME, count=count)
    require_floating(_NAME, learning_rate=learning_rate)
    decay = decayed if decayed is not None else (True,) * len(paths)
    require(_NAME, len(decay) == len(paths), f"decayed has {len(decay)} entries but params has {len(paths)} leaves")
    return decay


def adamw(
    learning_rate: Any,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    weight_decay: float = 1e-4,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """``optax.adamw`` as one op over all leaves: the same arguments, the same results but for the order of rounding.

    ``learning_rate`` is a number, a scalar array or a schedule of the step count; ``mask`` a tree of booleans, a prefix
    of one, or a function of the parameters, of the leaves that decay. The state is Optax's ``ScaleByAdamState``.
    The other numbers are static; where one is an array, as ``optax.inject_hyperparams`` makes them, it is
    ``optax.adamw`` itself that is returned. Raises ValueError where ``update`` gets no params.
    """
    import optax

    static = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "weight_decay": weight_decay}
    if any(isinstance(value, jax.Array) for value in static.values()):
        return optax.adamw(learning_rate, mu_dtype=mu_dtype, mask=mask, **static)

    def init(params: Any) -> optax.ScaleByAdamState:
        mu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=mu_dtype), params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        if params is None:
            raise ValueError("adamw: update takes the current params, which the weight decay needs")
        rate = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate, jnp.float32)
        decayed = None if mask is None else _decayed(mask(params) if callable(mask) else mask, params)
        updates, mu, nu = adamw_update(
            gradients, state.mu, state.nu, params, state.count, rate, **static, decayed=decayed
        )
        return updates, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(init, update)


def _decayed(mask: Any, params: Any) -> tuple[bool, ...]:
    """``mask``, or the tree it is a prefix of, as one boolean per leaf of ``params``."""
    try:
        full = jax.tree.map(lambda chosen, part: jax.tree.map(lambda _: bool(chosen), part), mask, params)
    except ValueError:
        given, tree = jax.tree.structure(mask), jax.tree.structure(params)
        raise ValueError(f"adamw: mask has the structure {given}, which is no prefix of params' {tree}") from None
    return tuple(jax.tree.leaves(full))


def _tree(seed: int, scale: float = 1.0) -> dict[str, Any]:
    return {"bias": normal((3,), seed, scale), "layers": [normal((2, 5), seed + 1, scale), normal((), seed + 2, scale)]}


@adamw_update.give_samples
def samples() -> Iterator[Sample]:
    rate, empty = np.float32(0.01), normal((0, 2))
    cases: list[dict[str, Any]] = [
        {},
        {"apply": True},
        {"b1": 0.5},
        {"b2": 0.9},
        {"eps": 0.1},
        {"eps_root": 0.3},
        {"weight_decay": 0.0},
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "decayed": (False, True, True)},
        {"apply": True, "weight_decay": 0.1, "decayed": (True, False, False)},
    ]
    for i, static in enumerate(cases):
        nu = jax.tree.map(np.square, _tree(30 + i))
        trees = (_tree(10 * i), _tree(20 + i), nu, _tree(40 + i))
        yield Sample(f"{static}, step {3 * i}", (*trees, np.int32(3 * i), rate), static)
    for n in (1, 7, 33, 257):
        g, mu, squares, p = (normal((n,), n + i) for i in range(4))
        yield Sample(f"{n} numbers", (g, mu, np.square(squares), p, np.int32(n), np.float32(0.3)))
    zeros = jax.tree.map(np.zeros_like, _tree(0))
    yield Sample("first step", (_tree(50), zeros, zeros, _tree(53), np.int32(0), rate))
    yield Sample("small gradients", (_tree(54, 1e-6), zeros, zeros, _tree(57), np.int32(0), rate))
    yield Sample(
        "many steps", (_tree(58), _tree(61), jax.tree.map(np.square, _tree(64)), _tree(67), np.int32(10**6), rate)
    )
    yield Sample("an empty leaf", (empty, empty, empty, empty, np.int32(1), rate))
    yield Sample("no leaves", ({}, {}, {}, {}, np.int32(1), rate))


@adamw_update.law
def the_first_step_is_the_sign_of_the_gradient(op: Any, g: Any, *args: Any, **static: Any) -> None:
    """Whatever the gradient's size, for the corrections undo both averages."""
    leaves = [x for x in jax.tree.leaves(g) if x.size and x.dtype == np.float32]
    zeros = [np.zeros_like(x) for x in leaves]
    updates, _, _ = op(leaves, zeros, zeros, zeros, np.int32(0), np.float32(0.5), b1=static.get("b1", 0.9), eps=0.0)
    for update, x in zip(updates, leaves, strict=True):
        np.testing.assert_allclose(update, -0.5 * np.sign(x), rtol=1e-5)


@adamw_update.law
def the_decay_is_decoupled(
    op: Any, g: Any, mu: Any, nu: Any, params: Any, count: Any, rate: Any, **static: Any
) -> None:
    """Without gradients and moments a parameter shrinks by ``rate * weight_decay`` of itself, if it decays at all."""
    leaves = [p for p in jax.tree.leaves(params) if p.dtype == np.float32]
    zeros, decayed = [np.zeros_like(p) for p in leaves], tuple(i % 2 == 0 for i in range(len(leaves)))
    new, _, _ = op(zeros, zeros, zeros, leaves, count, np.float32(0.5), weight_decay=0.25, decayed=decayed, apply=True)
    for p, decays, given in zip(leaves, decayed, new, strict=True):
        np.testing.assert_allclose(given, p * (0.875 if decays else 1), rtol=1e-6)


@adamw_update.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    g, mu, nu, p = (np.array([x], np.float32) for x in (2.0, 4.0, 8.0, 10.0))
    static = {"b1": 0.5, "b2": 0.5, "eps": 1.0, "weight_decay": 0.1}
    found = op(g, mu, nu, p, np.int32(1), np.float32(0.5), **static)  # mu 3 / 0.75, nu 6 / 0.75, step 4 / (8**0.5 + 1)
    np.testing.assert_allclose(np.concatenate(found), [-0.5 * (4 / (8**0.5 + 1) + 1), 3, 6], rtol=1e-6)


@adamw_update.give_main
def main_sizes() -> Iterator[Sample]:
    leaves = [[normal((256, 512), i)] for i in range(3)]
    squares = [np.square(normal((256, 512), 3))]
    count, rate = np.int32(3), np.float32(1e-3)
    yield Sample("a leaf of 256 x 512", (*leaves[:2], squares, leaves[2], count, rate), {"weight_decay": 0.1})


def _cost(gradients: Any, mu: Any, nu: Any, params: Any, *rest: Any, **static: Any) -> tuple[int, int]:
    sizes = [[x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)] for tree in (gradients, mu, nu, params)]
    return 15 * sum(x.size for x in jax.tree.leaves(params)), sum(sizes[0]) + 2 * sum(map(sum, sizes[1:]))


adamw_update.give_cost(_cost)


@adamw_update.fault
def no_bias_correction(g: Any, mu: Any, nu: Any, params: Any, count: Array, rate: Array, **static: Any) -> Any:
    return adamw_update.definition(g, mu, nu, params, count + 10**7, rate, **static)


@adamw_update.fault
def counted_from_zero(g: Any, mu: Any, nu: Any, params: Any, count: Array, rate: Array, **static: Any) -> Any:
    return adamw_update.definition(g, mu, nu, params, jnp.maximum(count - 1, 0), rate, **static)


@adamw_update.fault
def decay_in_the_gradient(g: Any, mu: Any, nu: Any, params: Any, *rest: Any, weight_decay: float, **static: Any) -> Any:
    """Adam with L2 regularisation."""
    coupled = jax.tree.map(lambda x, p: x + weight_decay * p, g, params)
    return adamw_update.definition(coupled, mu, nu, params, *rest, weight_decay=0.0, **static)


@adamw_update.fault
def mask_ignored(*args: Any, decayed: Any, **static: Any) -> Any:
    return adamw_update.definition(*args, **static)


@adamw_update.fault
def eps_inside_the_root(*args: Any, eps: float, eps_root: float, **static: Any) -> Any:
    return adamw_update.definition(*args, eps=0.0, eps_root=eps_root + eps, **static)


@adamw_update.fault
def eps_root_ignored(*args: Any, eps_root: float, **static: Any) -> Any:
    return adamw_update.definition(*args, **static)


@adamw_update.fault
def decays_exchanged(*args: Any, b1: float, b2: float, **static: Any) -> Any:
    return adamw_update.definition(*args, b1=b2, b2=b1, **static)


@adamw_update.fault
def second_moment_of_the_mean(g: Any, mu: Any, nu: Any, params: Any, *rest: Any, **static: Any) -> Any:
    first, new_mu, _ = adamw_update.definition(g, mu, nu, params, *rest, **static)
    return first, new_mu, adamw_update.definition(new_mu, mu, nu, params, *rest, **static)[2]


@adamw_update.fault
def always_applied(*args: Any, apply: bool, **static: Any) -> Any:
    return adamw_update.definition(*args, apply=True, **static)


@adamw_update.fault
def first_leaf_alone(g: Any, mu: Any, nu: Any, params: Any, *rest: Any, **static: Any) -> Any:
    results = adamw_update.definition(g, mu, nu, params, *rest, **static)
    old = (params if static["apply"] else jax.tree.map(jnp.zeros_like, params), mu, nu)

    def first(new: Any, kept: Any) -> Any:
        leaves, tree = jax.tree.flatten(new)
        return jax.tree.unflatten(tree, leaves[:1] + jax.tree.leaves(kept)[1:])

    return tuple(first(*pair) for pair in zip(results, old, strict=True))

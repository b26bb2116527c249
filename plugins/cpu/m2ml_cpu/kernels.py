"""The C++ kernels of the ops that come with m2ml, and what each takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import Kernel
from m2ml.ops.activations import ACTIVATIONS
from m2ml.ops.conv_bias_act import Geometry
from m2ml_cpu import attention
from m2ml_cpu.ffi import handler, source_of

Function = Callable[..., Any]


def like(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def present(*arrays: Any) -> list[Any]:
    return [x for x in arrays if x is not None]


def cpp(op: str, make: Callable[[Function], Function], *, file: str = "", **more: Any) -> Kernel:
    """A kernel whose handler ``op`` stands in ``cpp/<file>.cc``; ``make(handler)`` gives the function in its terms."""
    file = file or op.removesuffix("_backward")

    def load() -> Function:
        return make(handler(source_of(file), op))

    return Kernel(op, "cpu", f"cpp/{op}", load, devices=("cpu",), source=source_of(file), **more)


def one_dtype(*arrays: Any, **static: Any) -> str:
    """Kernels that take one dtype for all arrays decline others."""
    dtypes = {np.dtype(x.dtype).name for x in present(*arrays)}
    return "" if len(dtypes) == 1 else f"it takes one dtype for all, not {', '.join(sorted(dtypes))}"


def leading_dtype(x: Any, residual: Any, *weights: Any, **static: Any) -> str:
    return one_dtype(x, residual)


def first_gradients(count: int) -> Callable[..., str]:
    """Backward kernels whose first ``count`` arguments and cotangents have one dtype."""

    def accepts(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> str:
        return one_dtype(*args[:count], *cotangents)

    return accepts


def rms_norm(call: Function) -> Function:
    return lambda x, weight, *, eps: call(like(x), x, *present(weight), eps=np.float32(eps))


def rms_norm_backward(call: Function) -> Function:
    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        x, weight = args
        given = call(
            [like(a) for a in present(x, weight)], *present(x, weight), *cotangents, eps=np.float32(dict(static)["eps"])
        )
        return tuple(given[i] for i in wrt)

    return backward


def layer_norm(call: Function) -> Function:
    return lambda x, weight, bias, *, eps: call(like(x), x, *present(weight, bias), eps=np.float32(eps))


def layer_norm_takes(x: Any, weight: Any = None, bias: Any = None, **static: Any) -> str:
    if bias is not None:
        return "a bias without a weight" if weight is None else one_dtype(weight, bias)
    return ""


def layer_norm_backward(call: Function) -> Function:
    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        x, weight, bias = args
        attributes = {"eps": np.float32(dict(static)["eps"]), "bias": np.int64(bias is not None)}
        given = call([like(a) for a in present(*args)], *present(x, weight), *cotangents, **attributes)
        return tuple(given[i] for i in wrt)

    return backward


def layer_norm_backward_takes(args: Any, outputs: Any, cotangents: Any, **static: Any) -> str:
    return layer_norm_takes(*args) or one_dtype(args[0], *cotangents)


def add_rms_norm(call: Function) -> Function:
    def forward(x: Any, residual: Any, weight: Any, *, eps: float) -> Any:
        # In place: neither branch nor residual is of use to anybody once they are added.
        return tuple(call([like(x), like(x)], x, residual, *present(weight), eps=np.float32(eps), aliases={0: 0, 1: 1}))

    return forward


def swiglu(call: Function) -> Function:
    return lambda gate, up: call(like(gate), gate, up)


def swiglu_backward(call: Function) -> Function:
    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        given = call([like(x) for x in args], *args, *cotangents)
        return tuple(given[i] for i in wrt)

    return backward


def geglu(call: Function) -> Function:
    return lambda gate, up, *, approximate: call(like(gate), gate, up, approximate=np.int64(approximate == "tanh"))


def geglu_backward(call: Function) -> Function:
    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        approximate = np.int64(dict(static)["approximate"] == "tanh")
        given = call([like(x) for x in args], *args, *cotangents, approximate=approximate)
        return tuple(given[i] for i in wrt)

    return backward


def batch_norm_act(call: Function) -> Function:
    def forward(
        x: Any,
        mean: Any,
        variance: Any,
        weight: Any,
        bias: Any,
        *,
        train: bool,
        momentum: float,
        eps: float,
        activation: str,
    ) -> Any:
        channels = x.shape[-1:]
        given = mean, variance, jnp.ones(channels) if weight is None else weight
        arrays = [jnp.asarray(a, jnp.float32) for a in (*given, jnp.zeros(channels) if bias is None else bias)]
        numbers = {"momentum": momentum, "rest": 1 - momentum, "eps": eps}
        integers = {"train": train, "activation": list(ACTIVATIONS).index(activation)}
        attributes = {k: np.float32(v) for k, v in numbers.items()} | {k: np.int64(v) for k, v in integers.items()}
        # In place where nothing is differentiated: what came of a convolution is of use to nobody else.
        types, aliases = [like(x), like(arrays[0]), like(arrays[1])], {} if train else {0: 0}
        y, new_mean, new_variance = call(types, x, *arrays, aliases=aliases, **attributes)
        return y, new_mean.astype(mean.dtype), new_variance.astype(variance.dtype)

    return forward


def batch_norm_act_takes(x: Any, *arrays: Any, train: bool, activation: str, **static: Any) -> str:
    if not train and x.dtype == np.float32 and activation != "silu":
        return "XLA's code for a product and a sum in float32 is faster, and part of what stands beside it"
    return ""


def conv_bias_act(call: Function) -> Function:
    def forward(
        x: Any,
        weight: Any,
        bias: Any,
        *,
        strides: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        activation: str,
    ) -> Any:
        at = Geometry.of(x.shape, weight.shape, strides=strides, padding=padding, dilation=dilation)
        integers = {"stride_y": at.strides[0], "stride_x": at.strides[1], "top": at.pads[0][0], "left": at.pads[1][0]}
        integers |= {"spread_y": at.dilation[0], "spread_x": at.dilation[1], "groups": groups}
        integers["activation"] = list(ACTIVATIONS).index(activation)
        out = jax.ShapeDtypeStruct((*x.shape[:-3], *at.sizes, weight.shape[-1]), x.dtype)
        bias = jnp.zeros(weight.shape[-1:], x.dtype) if bias is None else bias
        return call(out, x, weight, bias, **{k: np.int64(v) for k, v in integers.items()})

    return forward


def conv_bias_act_takes(x: Any, weight: Any, bias: Any = None, *, groups: int, **static: Any) -> str:
    if groups > 1 and not groups == x.shape[-1] == weight.shape[-1]:
        return f"it takes one group, or a channel in each, not {groups} groups"
    if not weight.size:
        return "the weight is empty"
    return one_dtype(x, weight, bias)


def linear_bias_act(call: Function) -> Function:
    def forward(x: Any, weight: Any, bias: Any, *, activation: str) -> Any:
        out = jax.ShapeDtypeStruct((*x.shape[:-1], weight.shape[0]), x.dtype)
        bias = jnp.zeros(weight.shape[:1], x.dtype) if bias is None else bias
        return call(out, x, weight, bias, activation=np.int64(list(ACTIVATIONS).index(activation)))

    return forward


def rope(call: Function) -> Function:
    def forward(x: Any, positions: Any, frequencies: Any, *, interleaved: bool, magnitude: float) -> Any:
        attributes = {"interleaved": np.int64(interleaved), "magnitude": np.float32(magnitude)}
        return call(like(x), x, positions.astype(np.float32), frequencies.astype(np.float32), **attributes)

    return forward


def loss_attributes(*, ignore_index: int, label_smoothing: float, z_loss: float, **static: Any) -> dict[str, Any]:
    numbers = {"label_smoothing": np.float32(label_smoothing), "z_loss": np.float32(z_loss)}
    return {"ignore_index": np.int64(ignore_index), **numbers}


def softmax_cross_entropy(call: Function) -> Function:
    def forward(logits: Any, labels: Any, *, return_lse: bool, **static: Any) -> Any:
        rows = jax.ShapeDtypeStruct(labels.shape, np.float32)
        losses, lse = call([rows, rows], logits, labels.astype(np.int32), **loss_attributes(**static))
        return (losses, lse) if return_lse else losses

    return forward


def softmax_cross_entropy_backward(call: Function) -> Function:
    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        logits, labels = args
        of_lse = cotangents[1] if len(cotangents) > 1 else jnp.zeros_like(cotangents[0])
        arrays = logits, labels.astype(np.int32), outputs[1], cotangents[0], of_lse
        # In place: once their gradient is there nobody needs the logits.
        return (call(like(logits), *arrays, aliases={0: 0}, **loss_attributes(**dict(static))),)

    return backward


def adamw_update(call: Function) -> Function:
    def forward(gradients: Any, mu: Any, nu: Any, params: Any, count: Any, learning_rate: Any, **static: Any) -> Any:
        leaves, tree = jax.tree.flatten(params)
        n, decayed = len(leaves), static["decayed"] or (True,) * len(leaves)
        steps = count.astype(np.float32) + 1
        scalars = jnp.stack([1 - static["b1"] ** steps, 1 - static["b2"] ** steps, learning_rate.astype(np.float32)])
        arrays = [x for part in (gradients, mu, nu, params) for x in jax.tree.leaves(part)]
        names = ("b1", "b2", "eps", "eps_root", "weight_decay")
        numbers = {name: np.float32(static[name]) for name in names}
        numbers |= {"rest1": np.float32(1 - static["b1"]), "rest2": np.float32(1 - static["b2"])}
        given = call(
            [like(x) for x in leaves * 3],
            *arrays,
            scalars,
            jnp.array(decayed, np.int32),
            apply=np.int64(static["apply"]),
            # In place: the update where the gradient was (or the parameter), moments where moments were.
            aliases={(3 if static["apply"] and j == 0 else j) * n + i: j * n + i for j in range(3) for i in range(n)},
            **numbers,
        )
        return tuple(jax.tree.unflatten(tree, given[j * n : (j + 1) * n]) for j in range(3))

    return forward


def all_leaves_float32(*trees: Any, **static: Any) -> str:
    leaves = jax.tree.leaves(trees)[:-2]  # not count and rate
    other = sorted({np.dtype(x.dtype).name for x in leaves} - {"float32"})
    return f"it takes float32, not {', '.join(other)}" if other else "" if leaves else "there are no leaves"


def quantized_matmul(call: Function) -> Function:
    def forward(x: Any, w: Any) -> Any:
        attributes = {"bits": np.int64(w.bits), "group_size": np.int64(w.group_size)}
        out = jax.ShapeDtypeStruct((*x.shape[:-1], w.packed.shape[0]), x.dtype)
        biases = () if w.biases is None else (w.biases,)
        return call(out, x, w.packed, w.scales, *biases, **attributes)

    return forward


def quantized_matmul_takes(x: Any, w: Any, **static: Any) -> str:
    return "" if x.shape[-1] else "n is 0"


def sample_token(call: Function) -> Function:
    return lambda logits, bits, tokens, **static: call(jax.ShapeDtypeStruct(logits.shape[:-1], np.int32), logits)


def sample_token_takes(
    logits: Any, bits: Any = None, tokens: Any = None, *, temperature: float, repetition_penalty: float, **static: Any
) -> str:
    if temperature:
        return "it takes the likeliest token, temperature 0"
    return "it takes no repetition_penalty" if repetition_penalty != 1 else ""


KERNELS = (
    cpp("quantized_matmul", quantized_matmul, accepts=quantized_matmul_takes),
    cpp("adamw_update", adamw_update, accepts=all_leaves_float32, dtypes=("float32",)),
    cpp("batch_norm_act", batch_norm_act, accepts=batch_norm_act_takes),
    cpp("conv_bias_act", conv_bias_act, accepts=conv_bias_act_takes, dtypes=("float32",)),
    cpp("linear_bias_act", linear_bias_act, accepts=one_dtype, dtypes=("float32",)),
    cpp("geglu", geglu, accepts=one_dtype),
    cpp("geglu_backward", geglu_backward, accepts=first_gradients(2)),
    cpp("rms_norm", rms_norm),
    cpp("rms_norm_backward", rms_norm_backward, accepts=first_gradients(1)),
    cpp("layer_norm", layer_norm, accepts=layer_norm_takes),
    cpp("layer_norm_backward", layer_norm_backward, accepts=layer_norm_backward_takes),
    cpp("add_rms_norm", add_rms_norm, accepts=leading_dtype),
    cpp("attention", attention.attention, accepts=attention.takes),
    cpp("attention_backward", attention.attention_backward, accepts=attention.backward_takes),
    cpp("rope", rope),
    cpp("sample_token", sample_token, accepts=sample_token_takes),
    cpp("softmax_cross_entropy", softmax_cross_entropy),
    cpp("softmax_cross_entropy_backward", softmax_cross_entropy_backward),
    cpp("swiglu", swiglu, accepts=one_dtype),
    cpp("swiglu_backward", swiglu_backward, accepts=first_gradients(2)),
)

"""Write a traced program as a Python file of its own: one line per equation, inputs included.

The file needs jax, numpy and m2ml; run, it holds a backend against the reference. What is written is the flattened
program, so gradients and batching are spelled out, as the backend saw them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

import m2ml.ops
from m2ml import compat
from m2ml.errors import M2mlError
from m2ml.interpreter import Code, Equation, Step
from m2ml.op import ops
from m2ml.program import Program

Array = np.ndarray[Any, Any]

#: Arrays of more elements are written as hexadecimal bytes.
_LISTED = 64


_IMPORTS = """import jax
import numpy as np
from jax import lax
from jax.extend.core import primitives

import m2ml
import m2ml.ops
from m2ml.op import ops"""


class Unwritable(M2mlError):
    """An equation that no Python source can be written for."""


def with_ops(program: Program) -> Code:
    """The program's equations, with those calls of ops and backward ops kept whole that can be written."""

    def keep(call: Any, avals: Sequence[Any]) -> Callable[..., Any] | None:
        try:
            _op(call, [""] * len(avals))
        except Unwritable:
            return None
        return call.definition

    return program.code_with_ops(keep)


def source_of(code: Code, inputs: Sequence[Array], backend: str, about: str = "") -> str:
    """A Python file that runs ``code`` on ``inputs`` and fails where ``backend`` leaves the reference's bound."""
    writer = _Writer()
    names = [f"x{slot}" for slot in code.inputs]
    outputs = writer.code(code, names, "    ")
    arrays = "".join(f"    {_array(x)},\n" for x in inputs)
    return (
        f'"""{about or "A program."}\n\nWritten with jax {jax.__version__}."""\n\n'
        f"{_IMPORTS}\n\n\n"
        f"def program({', '.join(names)}):\n" + "".join(writer.lines) + f"    return [{', '.join(outputs)}]\n\n\n"
        f"INPUTS = [\n{arrays}]\n\n\n"
        f'if __name__ == "__main__":\n    print(m2ml.compare(program, *INPUTS, backends=["{backend}"]).check())\n'
    )


def loaded(source: str, file_name: str = "reproducer.py") -> tuple[Callable[..., Any], list[Array]]:
    """The function and the inputs of a file written by `source_of`."""
    space: dict[str, Any] = {"__name__": "reproducer"}
    exec(compile(source, file_name, "exec"), space)
    return space["program"], space["INPUTS"]


class _Writer:
    """Writes the equations of flattened code as statements; every name is given once in a file."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def code(self, code: Code, inputs: Sequence[str], indent: str) -> list[str]:
        """Write ``code`` for arguments of these names; gives the names of its results."""
        names = dict(zip(code.inputs, inputs, strict=True))
        for slot, value in code.constants.items():
            names[slot] = _array(value) if not value.shape else self.name()
            if value.shape:
                self.line(indent, f"{names[slot]} = {_array(value)}")
        for step in code.steps:
            self.step(step, names, indent)
        return [names[slot] for slot in code.outputs]

    def name(self, stem: str = "y") -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def line(self, indent: str, text: str) -> None:
        self.lines.append(f"{indent}{text}\n")

    def step(self, step: Step, names: dict[int, str], indent: str) -> None:
        equation, given = step.equation, [names[slot] for slot in step.inputs]
        special = _STATEMENTS.get(equation.name)
        text = special(self, equation, given, indent) if special else _bound(equation, given)
        made = [self.name() for _ in step.outputs]
        names.update(zip(step.outputs, made, strict=True))
        listed = equation.primitive.multiple_results and equation.name not in _FUNCTIONS
        listed = listed or equation.kernel is not None
        unpack = bool(special) or listed or len(made) > 1
        self.line(indent, f"{_tuple(made) if unpack else made[0]} = {text}  # {_types(equation)}")

    def body(self, code: Code, given: Sequence[str], stem: str, indent: str, *, carries: int | None = None) -> str:
        """A function of the code's last inputs, ``given`` names the first; with ``carries`` it is a scan's body."""
        name, inner = self.name(stem), indent + "    "
        own = [self.name("a") for _ in code.inputs[len(given) :]]
        if carries is None:
            self.line(indent, f"def {name}({', '.join(own)}):")
        else:
            self.line(indent, f"def {name}(carry, row):")
            self.line(inner, f"{_tuple(own[:carries])}, {_tuple(own[carries:])} = carry, row")
        outs = self.code(code, [*given, *own], inner)
        said = _tuple(outs) if carries is None else f"{_tuple(outs[:carries])}, {_tuple(outs[carries:])}"
        self.line(inner, f"return {said}")
        return name


def _tuple(names: Iterable[str]) -> str:
    listed = list(names)
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


def _types(equation: Equation) -> str:
    return ", ".join(f"{np.dtype(a.dtype).name}{list(a.shape)}" for a in equation.outputs)


# Equations ------------------------------------------------------------------------------------------


def _bound(equation: Equation, given: Sequence[str]) -> str:
    """``lax.mul_p.bind(x, y)``, or the public function where JAX does not show the primitive."""
    if equation.kernel is not None:
        return _op(equation.params["call"], given)
    if equation.name in _FUNCTIONS:
        return _FUNCTIONS[equation.name](equation, given)
    params = [f"{key}={_value(value)}" for key, value in equation.bind_params.items()]
    return f"{_place(equation.primitive)}.bind({', '.join([*given, *params])})"


class _Name(str):
    """The name of an array, to tell it from a string."""


def _op(call: Any, given: Sequence[str]) -> str:
    """``jax.tree.leaves(ops["rms_norm"](x, weight, eps=1e-6))``."""
    arrays = [_nested(argument) for argument in jax.tree.unflatten(call.tree, map(_Name, given))]
    static = [f"{name}={_value(value)}" for name, value in call.static]
    return f"jax.tree.leaves({_place_of_op(call.op)}({', '.join([*arrays, *static])}))"


def _nested(argument: Any) -> str:
    """An argument of an op: the name of an array, a tree of these, or a class of `m2ml.ops` that holds them."""
    if isinstance(argument, _Name):
        return str(argument)
    if isinstance(argument, tuple):
        return _tuple(map(_nested, argument))
    if isinstance(argument, list):
        return f"[{', '.join(map(_nested, argument))}]"
    if isinstance(argument, dict):
        return f"{{{', '.join(f'{key!r}: {_nested(x)}' for key, x in argument.items())}}}"
    if dataclasses.is_dataclass(argument) and hasattr(m2ml.ops, type(argument).__name__):
        return f"m2ml.ops.{type(argument).__name__}({', '.join(f'{k}={_nested(v)}' for k, v in _fields(argument))})"
    return _value(argument)


def _place_of_op(op: Any) -> str:
    """Where the registry has an op, or the backward op of one; nothing where it has not."""
    for name, known in ops.items():
        if op is known or op is known.backward:
            return f'ops["{name}"]{"" if op is known else ".backward"}'
    raise Unwritable(f"no op is called {op.name!r}")


@functools.cache
def _places() -> Mapping[int, str]:
    """Identity of each primitive that JAX's public modules show -> where."""
    from jax.extend.core import primitives

    modules = (("primitives", primitives), ("lax.linalg", lax.linalg), ("lax", lax))
    return {id(getattr(m, key)): f"{name}.{key}" for name, m in modules for key in dir(m) if key.endswith("_p")}


def _place(primitive: Any) -> str:
    found = _places().get(id(primitive))
    if found is None:
        raise Unwritable(f"no public module of jax {jax.__version__} shows the primitive {primitive}")
    return found


def _scan(writer: _Writer, equation: Equation, given: Sequence[str], indent: str) -> str:
    params = equation.params
    consts, carries = params["num_consts"], params["num_carry"]
    body = writer.body(params["jaxpr"], given[:consts], "scan", indent, carries=carries)
    carry, rows = _tuple(given[consts : consts + carries]), _tuple(given[consts + carries :])
    # A scan's carry and rows are two tuples; the equation's outputs are one.
    loop = f"lax.scan({body}, {carry}, {rows}, length={params['length']}, reverse={params['reverse']})"
    return f"jax.tree.leaves({loop})"


def _while(writer: _Writer, equation: Equation, given: Sequence[str], indent: str) -> str:
    params = equation.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    going = writer.body(params["cond_jaxpr"], given[:first], "going", indent)
    body = writer.body(params["body_jaxpr"], given[first:last], "body", indent)
    unpack = f"lambda carry: {going}(*carry)[0], lambda carry: {body}(*carry)"
    return f"lax.while_loop({unpack}, {_tuple(given[last:])})"


def _cond(writer: _Writer, equation: Equation, given: Sequence[str], indent: str) -> str:
    branches = [writer.body(code, (), "branch", indent) for code in equation.params["branches"]]
    return f"lax.switch({given[0]}, [{', '.join(branches)}], {', '.join(given[1:])})"


def _reduce(writer: _Writer, equation: Equation, given: Sequence[str], indent: str) -> str:
    params, half = equation.params, len(given) // 2
    body = writer.body(params["jaxpr"], (), "reducer", indent)
    keys = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    how = ", ".join(_value(params[key]) for key in (("dimensions",) if equation.name == "reduce" else keys))
    if half == 1:
        return f"[lax.{equation.name}({', '.join(given)}, lambda x, y: {body}(x, y)[0], {how})]"
    operands, inits = _tuple(given[:half]), _tuple(given[half:])
    return f"lax.{equation.name}({operands}, {inits}, lambda x, y: {body}(*x, *y), {how})"


#: Equations with bodies: what writes them, as an expression that gives a sequence of results.
_STATEMENTS: Mapping[str, Callable[[_Writer, Equation, Sequence[str], str], str]] = {
    "cond": _cond,
    "reduce": _reduce,
    "reduce_window": _reduce,
    "scan": _scan,
    "while": _while,
}


def _call(function: str, *keys: str) -> Callable[[Equation, Sequence[str]], str]:
    """A public function of the same name, with these of the equation's parameters."""

    def write(equation: Equation, given: Sequence[str]) -> str:
        params = [f"{key}={_value(equation.params[key])}" for key in keys]
        return f"{function}({', '.join([*given, *params])})"

    return write


def _counters(equation: Equation, given: Sequence[str]) -> str:
    shape = equation.params["shape"]
    return f"[np.zeros({shape}, np.uint32), np.arange({int(np.prod(shape))}, dtype=np.uint32).reshape({shape})]"


def _ragged(equation: Equation, given: Sequence[str]) -> str:
    keys = ("ragged_dot_dimension_numbers", "precision", "preferred_element_type")
    return _call("lax.ragged_dot_general", *keys)(equation, given)


def _scaled(equation: Equation, given: Sequence[str]) -> str:
    scales = f"lhs_scale={given[2]}, rhs_scale={given[3]}"
    kept = _call("lax.scaled_dot", "dimension_numbers", "preferred_element_type")(equation, given[:2])
    return f"{kept[:-1]}, {scales})"


def _gamma(equation: Equation, given: Sequence[str]) -> str:
    """The key is an array of two or four words here and a typed key to JAX."""
    impl = {2: "threefry2x32", 4: "rbg"}[equation.inputs[0].shape[-1]]
    key = f"jax.random.wrap_key_data({given[0]}, impl={impl!r})"
    return f"{_place(equation.primitive)}.bind({key}, {given[1]}, log_space={equation.params['log_space']})"


#: Primitives that no public module shows, or whose parameters hold a function: their public function.
_FUNCTIONS: Mapping[str, Callable[[Equation, Sequence[str]], str]] = {
    "empty": _call("lax.empty", "shape", "dtype"),
    "iota_2x32_shape": _counters,
    "log2": _call("lax.log2"),
    "multiply_add": lambda equation, xs: f"lax.add(lax.mul({xs[0]}, {xs[1]}), {xs[2]})",
    "one_minus_square": _call("lax.one_minus_square"),
    "polynomial": lambda equation, xs: f"lax.polynomial({xs[0]}, [{', '.join(xs[1:])}])",
    "ragged_dot": _ragged,
    "ragged_dot_general": _ragged,
    "random_gamma": _gamma,
    "random_gamma_grad": _call("lax.random_gamma_grad"),
    "scaled_dot": _scaled,
    **{
        name: _call(f"lax.{name}", "dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        for name in ("scatter", "scatter_add", "scatter_max", "scatter_min", "scatter_mul", "scatter_sub")
    },
}


# Values ---------------------------------------------------------------------------------------------


def _value(value: Any) -> str:
    """A parameter as an expression."""
    if isinstance(value, enum.Enum):
        return f"lax.{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if np.isfinite(value) else f"np.{np.array(value)}" if value > 0 else f"float('{value}')"
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return f'np.dtype("{np.dtype(value).name}")'
    if isinstance(value, np.integer):
        return repr(value.item())
    if isinstance(value, jax.sharding.Sharding):
        return "None"  # programs are of one device
    if hasattr(lax, type(value).__name__):
        return f"lax.{type(value).__name__}({', '.join(f'{k}={_value(v)}' for k, v in _fields(value))})"
    if isinstance(value, tuple):
        return _tuple(map(_value, value))
    if isinstance(value, np.ndarray | np.generic):
        return _array(np.asarray(value))
    if hasattr(value, "dtype"):  # jnp.int32 and its kin
        return f'np.dtype("{np.dtype(value.dtype).name}")'
    if type(value).__name__ == "Primitive":
        return _place(value)
    raise Unwritable(f"a parameter of type {type(value).__name__} cannot be written: {value!r}")


def _fields(value: Any) -> list[tuple[str, Any]]:
    names = value._fields if hasattr(value, "_fields") else [f.name for f in dataclasses.fields(value)]
    return [(name, getattr(value, name)) for name in names]


def _array(x: Array) -> str:
    """An expression that gives ``x``, bit for bit."""
    dtype = f'"{x.dtype.name}"'
    floating = compat.is_inexact(x.dtype)
    plain = x.size <= _LISTED and (not floating or bool(np.isfinite(x).all())) and x.dtype.kind != "c"
    if plain and x.size:
        values = x.astype(np.float64).tolist() if floating else x.tolist()
        return f"np.array({values}, {dtype})"
    if not x.size:
        return f"np.zeros({x.shape}, {dtype})"
    if x.size <= _LISTED and x.dtype.kind != "c":
        values = str(x.astype(np.float64).tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
        return f"np.array({values}, {dtype})"
    if x.size <= _LISTED:
        parts = np.ascontiguousarray(x).reshape(-1).view(x.real.dtype)
        return f"{_array(parts)}.view({dtype}).reshape({x.shape})"
    return f'np.frombuffer(bytes.fromhex("{np.ascontiguousarray(x).tobytes().hex()}"), {dtype}).reshape({x.shape})'

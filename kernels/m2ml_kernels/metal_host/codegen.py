"""The function that MLX writes around the body of a custom kernel, as mlx/backend/common/metal_kernel.cpp does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from m2ml_kernels.metal_host.signature import ATTRIBUTES

# Inputs with fewer elements are passed in the constant address space.
CONSTANT_BELOW = 8
TemplateValue = bool | int | str  # a string names a type


@dataclass(frozen=True)
class Argument:
    """An input as the generated source depends on it: its Metal type, its rank and its number of elements."""

    type: str
    ndim: int
    size: int

    @property
    def suffix(self) -> str:
        return "s" if self.ndim == 0 else "c" if self.size < CONSTANT_BELOW else ""


Extra = Literal["shape", "strides", "ndim"]


@dataclass(frozen=True)
class Definition:
    """What `mlx.core.fast.metal_kernel` is given."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    atomic_outputs: bool = False

    def extras(self, index: int, argument: Argument) -> list[Extra]:
        """Which of an input's shape, strides and rank are buffers of their own: those the source mentions."""
        if argument.ndim == 0:
            return []
        every: tuple[Extra, ...] = ("shape", "strides", "ndim")
        return [extra for extra in every if f"{self.input_names[index]}_{extra}" in self.source]

    def attributes(self) -> list[str]:
        return [name for name in ATTRIBUTES if name in self.source]


def kernel_name(
    definition: Definition,
    inputs: Sequence[Argument],
    outputs: Sequence[str],
    template: Sequence[tuple[str, TemplateValue]],
) -> str:
    """The generated function's name: it tells every source that one definition can give apart."""
    parts = [f"custom_kernel_{definition.name}"]
    if template:
        parts.append("_" + "_".join(_value(value) for _, value in template))
    parts += [argument.type + argument.suffix for argument in inputs]
    return re.sub("-", "_", "_".join([*parts, *outputs]))


def generate(
    definition: Definition,
    inputs: Sequence[Argument],
    outputs: Sequence[str],
    template: Sequence[tuple[str, TemplateValue]],
) -> str:
    """The whole Metal source for these inputs, output types and template arguments, without MLX's own header."""
    name = kernel_name(definition, inputs, outputs, template)
    lines = [definition.header]
    if template:
        declared = ", ".join(f"{_kind(value)} {parameter}" for parameter, value in template)
        lines.append(f"template <{declared}>\n")
    lines.append(f"[[kernel]] void {name}(\n")
    lines.append(",\n".join([*_parameters(definition, inputs, outputs), *_attributes(definition)]) + ") {\n")
    lines.append(f"{definition.source}\n}}\n")
    if template:
        function = f"{name}<{template_arguments(template)}>"
        lines.append(f'\ntemplate [[host_name("{name}")]] [[kernel]] decltype({function}) {function};\n')
    return "".join(lines)


def template_arguments(template: Sequence[tuple[str, TemplateValue]]) -> str:
    return ", ".join(_value(value) for _, value in template)


def _parameters(definition: Definition, inputs: Sequence[Argument], outputs: Sequence[str]) -> list[str]:
    out: list[str] = []
    for index, (name, argument) in enumerate(zip(definition.input_names, inputs, strict=True)):
        space = "constant" if argument.size < CONSTANT_BELOW else "device"
        mark = "&" if argument.ndim == 0 else "*"
        out.append(f"  const {space} {argument.type}{mark} {name} [[buffer({len(out)})]]")
        types = {"shape": "constant int*", "strides": "constant int64_t*", "ndim": "constant int&"}
        for extra in definition.extras(index, argument):
            out.append(f"  const {types[extra]} {name}_{extra} [[buffer({len(out)})]]")
    for name, type_name in zip(definition.output_names, outputs, strict=True):
        declared = f"atomic<{type_name}>" if definition.atomic_outputs else type_name
        out.append(f"  device {declared}* {name} [[buffer({len(out)})]]")
    return out


def _attributes(definition: Definition) -> list[str]:
    return [f"  {ATTRIBUTES[name]} {name} [[{name}]]" for name in definition.attributes()]


def _kind(value: TemplateValue) -> str:
    return "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "typename"


def _value(value: TemplateValue) -> str:
    return str(int(value)) if isinstance(value, bool | int) else value

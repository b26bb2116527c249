"""The engine: `m2ml.InterpreterBackend` with PyTorch's arrays and a rule per primitive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import m2ml
from m2ml_torch import arrays
from m2ml_torch.gaps import GAPS
from m2ml_torch.rules import rules


class TorchBackend(m2ml.InterpreterBackend):
    """Runs a program on PyTorch's CUDA device if there is one, and on the CPU otherwise."""

    name = "torch"
    rules = rules
    gaps: Sequence[m2ml.Gap] = GAPS
    array_type = torch.Tensor

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def devices(self) -> Sequence[m2ml.Device]:
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            return (m2ml.Device("gpu", f"{properties.name} (PyTorch {torch.__version__})", properties.total_memory),)
        return (m2ml.Device("cpu", f"PyTorch {torch.__version__}"),)

    def compile(self, program: m2ml.Program) -> Any:
        for equation in program.code.equations():
            self.refuse(equation)
        return super().compile(program)

    def refuse(self, equation: m2ml.Equation) -> None:
        """Raise for an equation that is a declared gap."""
        dtypes = {np.dtype(aval.dtype).name for aval in (*equation.inputs, *equation.outputs)}
        for gap in self.gaps:
            if gap.primitive == equation.name and (gap.dtype == "*" or gap.dtype in dtypes):
                raise m2ml.UnsupportedPrimitive(f"torch does not run {equation.describe()}: {gap.reason}")

    def apply(self, equation: m2ml.Equation, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        try:
            return super().apply(equation, inputs)
        except m2ml.ExecutionError as error:
            if "can't allocate memory" in str(error) or isinstance(error.__cause__, torch.OutOfMemoryError):
                raise m2ml.OutOfMemory(f"{equation.describe()} does not fit into PyTorch's memory") from error
            raise

    def from_host(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return arrays.from_host(array, self.device)

    def to_host(self, array: torch.Tensor) -> np.ndarray[Any, Any]:
        return arrays.to_host(array)

    def dtype_of(self, array: torch.Tensor) -> np.dtype[Any]:
        return arrays.numpy_dtype(array.dtype)

    def owns(self, array: Any) -> bool:
        return isinstance(array, torch.Tensor)

    def stack(self, rows: Sequence[torch.Tensor], aval: Any) -> torch.Tensor:
        dtype = arrays.torch_dtype(aval.dtype)
        if not rows:
            return torch.zeros(aval.shape, dtype=dtype, device=self.device)
        return arrays.same_bits(torch.stack([arrays.signed(row) for row in rows]), dtype)

    def wait(self, arrays: Sequence[torch.Tensor]) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory(self) -> m2ml.MemoryStats:
        if self.device.type != "cuda":
            return m2ml.MemoryStats()
        return m2ml.MemoryStats(torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device))

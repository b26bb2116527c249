"""m2ml: write a model once in JAX, run it on any installed backend, and have tests prove the numbers agree."""

import importlib
from typing import TYPE_CHECKING, Any

from m2ml import errors as errors
from m2ml.arrays import KeyArray as KeyArray
from m2ml.arrays import get as get
from m2ml.arrays import put as put
from m2ml.arrays import wait as wait
from m2ml.backend import Backend as Backend
from m2ml.backend import Device as Device
from m2ml.backend import Gap as Gap
from m2ml.backend import MemoryStats as MemoryStats
from m2ml.cost import Cost as Cost
from m2ml.doctor import Diagnosis as Diagnosis
from m2ml.doctor import backends as backends
from m2ml.doctor import doctor as doctor
from m2ml.errors import BackendNotFound as BackendNotFound
from m2ml.errors import BackendUnavailable as BackendUnavailable
from m2ml.errors import Disagreement as Disagreement
from m2ml.errors import ExecutionError as ExecutionError
from m2ml.errors import FallbackWarning as FallbackWarning
from m2ml.errors import M2mlError as M2mlError
from m2ml.errors import NotANumber as NotANumber
from m2ml.errors import OutOfMemory as OutOfMemory
from m2ml.errors import UnsupportedDtype as UnsupportedDtype
from m2ml.errors import UnsupportedPrimitive as UnsupportedPrimitive
from m2ml.interpreted import InterpreterBackend as InterpreterBackend
from m2ml.interpreter import Code as Code
from m2ml.interpreter import Equation as Equation
from m2ml.interpreter import Rules as Rules
from m2ml.jit import Jitted as Jitted
from m2ml.jit import jit as jit
from m2ml.kernel import Kernel as Kernel
from m2ml.op import Op as Op
from m2ml.op import Sample as Sample
from m2ml.op import op as op
from m2ml.plugins import hookimpl as hookimpl
from m2ml.program import Program as Program
from m2ml.selection import current as current
from m2ml.selection import use as use
from m2ml.xla import XlaBackend as XlaBackend

if TYPE_CHECKING:
    from m2ml.equivalence.compare import compare as compare
    from m2ml.tuning import Tuning as Tuning
    from m2ml.tuning import tune as tune

#: What few programs use, loaded when it is first asked for, so that importing m2ml stays cheap.
_LATER = {"compare": "m2ml.equivalence.compare", "Tuning": "m2ml.tuning", "tune": "m2ml.tuning"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'm2ml' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})

"""Kernels of m2ml's ops, and the tools that compile and check them; depends on neither m2ml nor a backend."""

from m2ml_kernels.compilers import find_compiler as find_compiler
from m2ml_kernels.errors import CompileError as CompileError
from m2ml_kernels.errors import CompilerMissing as CompilerMissing
from m2ml_kernels.errors import KernelError as KernelError
from m2ml_kernels.toolchain import Built as Built
from m2ml_kernels.toolchain import compile_program as compile_program
from m2ml_kernels.toolchain import compile_shared as compile_shared
from m2ml_kernels.toolchain import find_shared as find_shared
from m2ml_kernels.toolchain import object_folder as object_folder

"""Faults that the fuzzer's tests plant in the mlx table; a worker imports them by name."""

import os
import signal
import time

import mlx.core as mx
from m2ml_mlx.rules import rules


def few_primitives():
    """Programs of three primitives, so that the fault is met at once."""
    import m2ml.equivalence.hunt as hunt

    hunt.drawable_ops = list
    hunt.palette = lambda rng, counts, rare: ["sin", "mul", "transpose"]


def truncated_sine():
    few_primitives()
    rules["sin"] = lambda equation, x: (mx.sin(x.astype(mx.float32)) * 0.99).astype(x.dtype)


def never_cut_down():
    """A wrong sine whose programs take for ever to cut down."""
    import m2ml.equivalence.hunt as hunt

    truncated_sine()
    hunt.smaller = lambda *args: time.sleep(600)


def dropped_tail(right):
    def rule(equation, *arrays):
        out = right(equation, *arrays)
        flat = mx.flatten(out)
        kept = mx.where(mx.arange(flat.size) == flat.size - 1, mx.zeros_like(flat), flat)
        return mx.reshape(kept, out.shape)

    return rule


def crashing_sine():
    few_primitives()
    rules["sin"] = lambda equation, x: os.kill(os.getpid(), signal.SIGSEGV)


def hanging_sine():
    few_primitives()
    rules["sin"] = lambda equation, x: time.sleep(600)

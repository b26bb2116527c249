"""Whether a provider computes: asked in a process of its own, within a time limit, and remembered.

A provider may crash, hang, or replace functions of JAX; all that stays in the child. The answer is kept by the versions
of what is installed, macOS's build and the chip, so that each is asked once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2ml.cache import cache_folder
from m2ml.errors import how_it_ended, last_words
from m2ml_jax_metal.machine import Machine
from m2ml_jax_metal.providers import Provider

#: Seconds the child has: it loads JAX, starts Metal and compiles five small programs.
TIME_LIMIT = 120.0

#: Part of the key: another set of questions makes every earlier answer void.
QUESTIONS = 1

_MARK = "m2ml probe: "


@dataclass(frozen=True)
class Answer:
    """What came of the questions. ``failures`` are by question; ``remembered`` is the file it was read from."""

    ok: bool
    said: str
    device: str = ""
    seconds: float = 0.0
    remembered: str = ""


def ask(provider: Provider, machine: Machine, environment: Mapping[str, str], *, fresh: bool = False) -> Answer:
    """The answer of ``provider``, from memory or from a child process that runs with ``environment`` added."""
    path = cache_folder() / "jax_metal" / f"{_key(provider, machine, environment)}.json"
    known = None if fresh else _recall(path)
    if known is not None:
        return known
    answer, final = _run_child(provider, environment)
    if final:
        _remember(path, answer)
    return answer


def _key(provider: Provider, machine: Machine, environment: Mapping[str, str]) -> str:
    versions = sorted(map(str, machine.distributions.values()))
    facts = [QUESTIONS, provider.distribution, versions, machine.python, machine.build, machine.chip]
    return hashlib.sha256(json.dumps([*facts, sorted(environment.items())]).encode()).hexdigest()


def _recall(path: Path) -> Answer | None:
    try:
        return Answer(**(json.loads(path.read_text()) | {"remembered": str(path)}))
    except (OSError, ValueError, TypeError):
        return None


def _remember(path: Path, answer: Answer) -> None:
    """Written beside and moved into place; a folder that cannot be written costs a probe per process, no more."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(answer)))
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()


def _run_child(provider: Provider, environment: Mapping[str, str]) -> tuple[Answer, bool]:
    """The child's answer, and whether it is worth remembering: one that was only too slow is asked again."""
    began = time.perf_counter()
    variables = os.environ | dict(environment) | {"JAX_PLATFORMS": f"{provider.platform},cpu"}
    variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", __name__, provider.platform]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return Answer(False, f"its probe gave no answer within {TIME_LIMIT:g} s"), False
    seconds = round(time.perf_counter() - began, 1)
    lines = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not lines:
        said = f"its probe {how_it_ended(done.returncode)}{last_words(done.stderr)}"
        return Answer(False, said, seconds=seconds), True
    found = json.loads(lines[-1])
    failures = [f"{name}: {said}" for name, said in found["checks"].items() if said]
    said = f"its probe failed ({'; '.join(failures)})" if failures else f"{len(found['checks'])} checks passed"
    return Answer(not failures, said, found["device"], seconds), True


# The child --------------------------------------------------------------------------------------------


def _device(platform: str) -> tuple[Any, Any]:
    import jax

    device = jax.devices(platform)[0]
    return jax, device


def _matmul(jax: Any) -> str:
    """Each element within the rounding of float32 sums: what reduced precision does is a thousand times that."""
    import numpy as np

    x, y = np.random.default_rng(0).normal(size=(2, 128, 128)).astype(np.float32)
    got = np.asarray(jax.jit(lambda a, b: a @ b)(x, y))
    exact = x.astype(float) @ y.astype(float)
    allowed = x.shape[1] * 2.0**-24 * (np.abs(x).astype(float) @ np.abs(y).astype(float))
    worst = float(np.max(np.abs(got - exact) / allowed))
    return "" if worst <= 1 else f"float32 matmul is off by {worst:.3g} times what float32 rounding allows"


def _reversed_view(jax: Any) -> str:
    import numpy as np

    y = np.arange(1, 9, dtype=np.float32)
    got = np.asarray(jax.jit(lambda v: v[::-1] * 2)(y))
    return "" if np.array_equal(got, y[::-1] * 2) else f"y[::-1] * 2 gave {got.tolist()}"


def _grad_of_scan_with_cond(jax: Any) -> str:
    """``c`` doubles or grows by ``w`` from step to step; small whole numbers, so that every result is exact."""
    import numpy as np

    def loss(w: Any) -> Any:
        def step(carry: Any, i: Any) -> Any:
            return jax.lax.cond(i % 2 == 0, lambda c: c + w, lambda c: 2 * c, carry), carry

        last, seen = jax.lax.scan(step, w, jax.numpy.arange(6))
        return last.sum() + seen.sum()

    def by_hand() -> float:
        slope, total = 1.0, 0.0
        for i in range(6):
            total += slope
            slope = slope + 1 if i % 2 == 0 else 2 * slope
        return slope + total

    got = np.asarray(jax.jit(jax.grad(loss))(np.ones(3, np.float32)))
    return "" if np.array_equal(got, np.full(3, by_hand())) else f"its gradient is {got.tolist()}, not {by_hand()}"


def _masked_attention(jax: Any) -> str:
    """As many heads as queries, and a mask that is not symmetric: axes taken for each other show."""
    import numpy as np

    q, k, v = np.random.default_rng(1).normal(size=(3, 4, 4, 8)).astype(np.float32)  # [length, heads, dim]
    mask = np.tril(np.ones((4, 4), bool))

    def attend(xp: Any, q: Any, k: Any, v: Any) -> Any:
        scores = xp.where(mask, xp.einsum("thd,shd->hts", q, k), -np.inf)
        weights = xp.exp(scores - scores.max(-1, keepdims=True))
        return xp.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v)

    got = np.asarray(jax.jit(lambda *xs: attend(jax.numpy, *xs))(q, k, v))
    wanted = attend(np, *(x.astype(float) for x in (q, k, v)))
    size = np.abs(q).sum(-1).max() * np.abs(k).max() * 2.0**-24 * 8 + 16 * 2.0**-24
    allowed = 2 * size * np.abs(v).max()
    worst = float(np.abs(got - wanted).max())
    return "" if worst <= allowed else f"masked attention is off by {worst:.3g}; rounding allows {allowed:.3g}"


_CHECKS: Mapping[str, Callable[[Any], str]] = {
    "matmul": _matmul,
    "reversed view": _reversed_view,
    "grad of scan with cond": _grad_of_scan_with_cond,
    "masked attention": _masked_attention,
}


def main(platform: str) -> None:
    """Ask the questions on the first device of ``platform`` and print the answers on one line."""
    jax, device = _device(platform)
    with jax.default_device(device):
        checks = {"device": ""} | {name: _said(check, jax) for name, check in _CHECKS.items()}
    print(_MARK + json.dumps({"device": f"{device.device_kind}", "checks": checks}), flush=True)


def _said(check: Callable[[Any], str], jax: Any) -> str:
    try:
        return check(jax)
    except Exception as error:  # whatever a provider raises is its answer
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main(sys.argv[1])

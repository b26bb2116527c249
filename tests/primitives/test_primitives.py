"""Every primitive that has a rule, on generated shapes, dtypes and parameters: mlx and cpu against the reference."""

import functools

import jax
import jax.extend.core.primitives
import pytest
from m2ml_mlx.rules import rules as mlx_rules

from m2ml import compat
from m2ml.equivalence.primitives.cases import EXAMPLES, examples, load
from m2ml.equivalence.primitives.check import check, primitives, traced
from m2ml.plugins import registry

#: Of the examples these many run on cpu too: XLA compiles each, and has its own tests.
COMPILED = 10
CASES = load()
BACKENDS = [registry.get(name) for name in ("cpu", "mlx")]


def known_to_jax() -> set[str]:
    """The names of the primitives that JAX's public modules show."""
    modules = (jax.lax, jax.lax.linalg, jax.extend.core.primitives)
    names = {getattr(getattr(m, key), "name", "") for m in modules for key in dir(m) if key.endswith("_p")}
    return {compat.RENAMED.get(name, name) for name in names}


def with_a_rule() -> set[str]:
    return set(mlx_rules) | set(registry.get("reference").rules)


@pytest.mark.parametrize("name", sorted(CASES))
def test_agrees_with_the_reference(name):
    met = set()

    def run(draw, backends):
        function, arrays = CASES[name](draw, name)
        code = traced(function, arrays)
        met.update(primitives(code))
        if name in met or name in known_to_jax():
            check(code, arrays, backends)

    examples(functools.partial(run, backends=BACKENDS), COMPILED)
    examples(functools.partial(run, backends=BACKENDS[1:]), EXAMPLES - COMPILED, seed=1)
    if name not in met and name not in known_to_jax():
        pytest.skip(f"jax {jax.__version__} has no primitive {name}")
    assert name in met


_LOWERED = "JAX binds it only while lowering another primitive, which has a generator"
_PRIVATE = "no public function of JAX binds it"

#: Primitives with a rule that no generator makes, each with its reason.
NOT_GENERATED = {
    **dict.fromkeys(("eigh_jacobi", "geqp3", "geqrf", "symmetric_update"), _LOWERED),
    **dict.fromkeys(("broadcast_to", "empty2", "expand_dims", "tie", "zeros_like"), _PRIVATE),
    **dict.fromkeys(("philox2x32", "philox4x32", "threefry4x32"), _PRIVATE),
    "select_and_scatter": "JAX makes it from no function; its sum, select_and_scatter_add, has a generator",
}


def test_every_primitive_with_a_rule_has_a_generator():
    missing = with_a_rule() - set(CASES) - set(NOT_GENERATED)
    assert not missing, f"no generator for {sorted(missing)}"


def test_every_generator_is_of_a_primitive_with_a_rule():
    assert set(CASES) <= with_a_rule()


def test_nothing_is_excused_that_has_a_generator_or_no_rule():
    assert not set(NOT_GENERATED) & set(CASES)
    assert set(NOT_GENERATED) <= with_a_rule()

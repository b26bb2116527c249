"""Every Optax optimizer and loss: mlx and cpu within the measured bound."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import m2ml

BACKENDS = ("cpu", "mlx")

#: Optax announces what it will rename; the old names still work.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Specifying a key:UserWarning")

#: What Optax says when an optimizer wants the value or the function too.
MORE_WANTED = re.compile(r"missing .* argument|must be provided|need to pass the latest loss")
PARAMS = {
    "w": np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype(np.float32),
    "b": np.array([0.5, -0.25, 0.75], np.float32),
}


def constructors():
    """Public functions that make a gradient transformation from a learning rate, or from nothing."""
    found = {}
    for module in (optax, optax.contrib):
        for name in dir(module):
            function = getattr(module, name)
            if name.startswith(("_", "scale_by")) or not inspect.isfunction(function):
                continue
            parameters = inspect.signature(function).parameters
            required = {p.name for p in parameters.values() if p.default is p.empty}
            if "learning_rate" in parameters and required <= {"learning_rate"}:
                found[name] = (function, {"learning_rate": 0.01})
    return found


CONSTRUCTORS = constructors()


def gradients(params):
    return jax.grad(lambda p: jnp.sum((jnp.sin(p["w"]) @ p["b"] - 0.3) ** 2))(params)


def train(optimizer):
    def run(params):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(gradients(params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    return run


def needs_more_than_gradients(optimizer):
    try:
        jax.eval_shape(train(optimizer), PARAMS)
    except (TypeError, ValueError) as error:
        return MORE_WANTED.search(str(error)) is not None
    return False


def test_the_optimizers_are_found():
    assert {"adam", "adamw", "sgd", "lion", "lamb", "adafactor", "rmsprop", "muon", "yogi"} <= set(CONSTRUCTORS)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_three_steps(name):
    function, arguments = CONSTRUCTORS[name]
    optimizer = function(**arguments)
    if not hasattr(optimizer, "update"):
        pytest.skip("no optimizer: a part of one")
    if needs_more_than_gradients(optimizer):
        pytest.skip("wants the loss function as an extra argument")
    m2ml.compare(train(optimizer), PARAMS, backends=BACKENDS).check()


# Losses ---------------------------------------------------------------------------------------------

_rng = np.random.default_rng(1)
_LOGITS = _rng.uniform(-2, 2, (6, 4)).astype(np.float32)
_PROBABILITIES = np.asarray(jax.nn.softmax(_rng.uniform(-2, 2, (6, 4))), np.float32)
_CLASSES = np.array([0, 3, 1, 1, 2, 0])

#: What to give for an argument of this name; a loss that wants other values has its own entry below.
ARGUMENTS = {
    "predictions": _LOGITS,
    "targets": _PROBABILITIES,
    "log_predictions": np.log(_PROBABILITIES[::-1]),
    "log_targets": np.log(_PROBABILITIES),
    "predictor_outputs": _LOGITS,
    "logits": _LOGITS,
    "labels": _PROBABILITIES,
    "scores": _LOGITS,
    "embeddings": _LOGITS,
    "anchors": _LOGITS,
    "positives": _LOGITS[::-1].copy(),
    "negatives": _LOGITS + np.float32(0.4),
}
_SEQUENCES = {
    "logits": _rng.uniform(-2, 2, (2, 6, 4)).astype(np.float32),
    "logit_paddings": np.array([[0.0] * 6, [0.0] * 4 + [1.0] * 2], np.float32),
    "labels": np.array([[1, 2, 2], [3, 1, 0]]),
    "label_paddings": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32),
}
SIGNS = np.where(_PROBABILITIES > 0.25, 1.0, -1.0).astype(np.float32)
OWN = {
    "hinge_loss": {"targets": SIGNS},
    "perceptron_loss": {"targets": SIGNS},
    "sparsemax_loss": {"labels": (SIGNS + 1) / 2},
    "multiclass_hinge_loss": {"labels": _CLASSES},
    "multiclass_perceptron_loss": {"labels": _CLASSES},
    "multiclass_sparsemax_loss": {"labels": _CLASSES},
    "softmax_cross_entropy_with_integer_labels": {"labels": _CLASSES},
    "ntxent": {"labels": np.array([0, 0, 1, 1, 2, 2])},
    "smooth_labels": {"alpha": 0.1},
    "ctc_loss": _SEQUENCES,
    "ctc_loss_with_forward_probs": _SEQUENCES,
}
LOSSES = sorted(n for n in dir(optax.losses) if inspect.isfunction(getattr(optax.losses, n)) and not n.startswith("_"))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(name):
    loss = getattr(optax.losses, name)
    if name == "make_fenchel_young_loss":
        loss, required = loss(jax.nn.logsumexp), ["scores", "targets"]
    else:
        required = [p.name for p in inspect.signature(loss).parameters.values() if p.default is p.empty]
    given = {**ARGUMENTS, **OWN.get(name, {})}
    first, *rest = (given[argument] for argument in required)

    def total(first, *rest):
        return sum(jnp.sum(y) for y in jax.tree.leaves(loss(first, *rest)))

    m2ml.compare(loss, first, *rest, backends=BACKENDS).check()
    m2ml.compare(jax.grad(total), first, *rest, backends=BACKENDS).check()

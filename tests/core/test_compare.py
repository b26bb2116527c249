"""m2ml.compare: every backend against the reference, within a measured bound."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import m2ml
from m2ml.equivalence import bound_of, unit
from m2ml.plugins import registry


def program(x, w):
    hidden = jnp.tanh(x @ w)
    return {
        "loss": jnp.mean(hidden**2),
        "best": jnp.argmax(hidden, axis=-1),
        "grad": jax.grad(lambda w: jnp.sum(x @ w))(w),
    }


X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)


def test_every_backend_agrees_and_the_report_names_each_output():
    report = m2ml.compare(program, X, W).check()
    assert {r.backend for r in report.backends} == set(m2ml.backends()) - {"reference"}
    assert [o.path for o in report.backends[0].outputs] == ["['best']", "['grad']", "['loss']"]
    assert "cpu: agrees" in str(report)


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("a little too large", lambda outs: [outs[0], outs[1] * (1 + 1e-5), outs[2]]),
        ("an index off by one", lambda outs: [outs[0] + 1, outs[1], outs[2]]),
        ("one element NaN", lambda outs: [outs[0], outs[1] * np.array([[np.nan], *[[1.0]] * 6], np.float32), outs[2]]),
        ("half precision", lambda outs: [outs[0], outs[1].astype(jnp.bfloat16).astype(jnp.float32), outs[2]]),
        ("another dtype", lambda outs: [outs[0].astype(jnp.int16), outs[1], outs[2]]),
        ("another shape", lambda outs: [outs[0], outs[1][:-1], outs[2]]),
    ],
)
def test_a_wrong_result_is_reported(monkeypatch, fault, change):
    cpu = registry.get("cpu")
    right = cpu.compile
    monkeypatch.setattr(cpu, "compile", lambda program: lambda *args: change(right(program)(*args)))
    report = m2ml.compare(program, X, W, backends=["cpu"])
    assert not report.ok, fault
    with pytest.raises(m2ml.Disagreement, match=r"cpu: DISAGREES"):
        report.check()


def test_a_backend_that_fails_is_reported_and_the_others_still_run(monkeypatch):
    def fail(program):
        raise RuntimeError("the engine\nbroke")

    monkeypatch.setattr(registry.get("mlx"), "compile", fail)
    report = m2ml.compare(program, X, W)
    said = {r.backend: r.error for r in report.backends}
    assert said == {"cpu": "", "mlx": "RuntimeError: the engine broke"}


def test_values_that_overflow_or_are_not_numbers_agree():
    m2ml.compare(
        lambda x: (x * x, jnp.log(x), x / 0, jnp.sqrt(-x)), np.array([1e30, -0.0, 3, -np.inf], np.float32)
    ).check()


def test_a_signaling_nan_agrees_with_itself():
    bits = np.array([0x7F800001, 0xFF800001, 0x7FC00000], np.uint32)
    m2ml.compare(lambda x: jax.lax.bitcast_convert_type(x, jnp.float32), bits, backends=["cpu"]).check()


def test_ties_that_rounding_decides_are_reported_not_judged():
    def ties(x):
        return jnp.argmax(jnp.stack([jnp.sum(x), jnp.sum(x[::-1])]))

    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    report = m2ml.compare(ties, x)
    assert report.ok


def test_both_parts_of_a_complex_result_may_be_rounded():
    real = [-0.7254860401153564, 0, -0.0, -0.3679344058036804, -0.30200308561325073, 1.7581731081008911]
    imaginary = [1, -1, 2, 0, 0, -1.5102972984313965, 1.0490726232528687, -0.5841259956359863]
    x = np.array([*real, 0.9651214480400085, 0.5], np.complex64) + 1j * np.array(imaginary, np.float32)
    m2ml.compare(lambda x: jnp.imag(jnp.fft.ifft(x)[1:]), x.astype(np.complex64), backends=["cpu", "mlx"]).check()


def test_bounds_are_exact_for_integers_and_scale_with_the_dtype():
    assert unit(np.int32) == 0
    assert unit(np.float32) == 2.0**-24
    exact = np.array([1.0, 2.0])
    narrow = bound_of(np.float32, exact, [exact * (1 + 2.0**-24)])
    wide = bound_of(np.float16, exact, [exact * (1 + 2.0**-11)])
    assert np.all(narrow.allowed < wide.allowed / 1000)
    integers = bound_of(np.int32, np.array([1, 2]), [np.array([1, 3])])
    assert integers.unstable.tolist() == [False, True]


def test_keys_and_python_scalars_are_inputs_like_any_other():
    m2ml.compare(
        lambda key, x: (jax.random.split(key), jax.random.normal(key, (3,)) * x), jax.random.key(1), 2.0
    ).check()


# Gradients ------------------------------------------------------------------------------------------


def paths(report):
    return [output.path for output in report.backends[0].outputs]


def gradient(fn, *args, **options):
    """Gradients as `compare` gives them to the cpu backend, checked against the reference."""
    seen = []
    cpu = registry.get("cpu")
    right = cpu.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "compile", lambda program: lambda *xs: seen.append(right(program)(*xs)) or seen[-1])
        report = m2ml.compare(fn, *args, backends=["cpu"], **options).check()
    return report, seen[0]


def test_gradients_are_of_the_scalar_with_respect_to_every_floating_leaf():
    def loss(params, n):
        return jnp.sum(jnp.tanh(params["w"]) * n) + params["b"]

    params = {"w": X / 10, "b": 2.0, "step": np.int32(3)}
    report, outs = gradient(loss, params, 5, grad=True)
    assert paths(report) == ["", "gradient of params['b']", "gradient of params['w']"]
    np.testing.assert_allclose(outs[2], jax.grad(loss, allow_int=True)(params, 5)["w"], rtol=1e-6)


def test_gradients_of_results_that_are_no_scalar_count_every_element():
    def fn(x):
        return {"a": jnp.sin(x), "b": (x > 0).astype(int), "c": x[:2]}

    report, outs = gradient(fn, X, grad=True)
    assert paths(report) == ["['a']", "['b']", "['c']", "gradient of x"]
    assert np.all(np.asarray(outs[3]) != 0)
    assert np.all(np.abs(np.asarray(outs[3][2:])) <= np.abs(np.cos(X[2:])) * (1 + 1e-6))


@pytest.mark.parametrize(
    ("grad", "names"),
    [
        (0, ["x"]),
        ((0, 2), ["x", "w['k']"]),
        (-1, ["w['k']"]),
        ("w", ["w['k']"]),
        (("bias", "x"), ["bias", "x"]),
        (("x", 0), ["x"]),
    ],
)
def test_gradients_are_chosen_by_position_or_name(grad, names):
    def fn(x, y, w, *, bias, n):
        return jnp.sum(x @ w["k"] + y) * bias * n

    report = m2ml.compare(fn, X, np.ones(3, np.float32), {"k": W}, bias=2.0, n=3, grad=grad, backends=["cpu"]).check()
    assert paths(report)[1:] == [f"gradient of {name}" for name in names]


@pytest.mark.parametrize(
    ("grad", "said"),
    [
        ("z", "with respect to argument 'z': there is x, n, key"),
        (7, "with respect to argument 7: there is x, n, key"),
        ("n", "with respect to argument 'n': it holds no floating-point numbers"),
        ("key", "with respect to argument 'key': it holds no floating-point numbers"),
    ],
)
def test_a_gradient_that_cannot_be_is_refused(grad, said):
    def fn(x, n, key):
        return x * n + jax.random.normal(key)

    with pytest.raises(m2ml.M2mlError, match=f"compare cannot differentiate fn {said}"):
        m2ml.compare(fn, 2.0, 3, jax.random.key(0), grad=grad)


def test_a_program_that_has_no_gradient_is_refused():
    with pytest.raises(m2ml.M2mlError, match="no argument holds floating-point numbers"):
        m2ml.compare(lambda n: n * 2.0, 3, grad=True)
    with pytest.raises(m2ml.M2mlError, match="no result holds floating-point numbers"):
        m2ml.compare(lambda x: x > 1, X, grad=True)
    with pytest.raises(m2ml.M2mlError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
        m2ml.compare(lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 99, lambda c: c + 1, x), X, grad=True)


def test_gradients_of_jitted_functions_keep_static_arguments():
    @m2ml.jit(static_argnames=("power", "mode"), donate_argnames="x")
    def fn(power, x, mode):
        return jnp.sum(x**power) if mode == "sum" else jnp.max(x)

    report = m2ml.compare(fn, 3, X, mode="sum", grad=True).check()
    assert paths(report) == ["", "gradient of x"]


def test_complex_numbers_and_keys_are_arguments_of_gradients():
    z = (X[0] + 1j * X[1]).astype(np.complex64)
    report = m2ml.compare(
        lambda z, key: jnp.fft.fft(z) * jax.random.normal(key, z.shape), z, jax.random.key(3), grad=True
    )
    assert paths(report.check()) == ["", "gradient of z"]


class Counted(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(7, 3, rngs=nnx.Rngs(0))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls.value = self.calls.value + 1
        return self.linear(x)


@pytest.mark.filterwarnings("ignore:'.value':DeprecationWarning")
def test_modules_are_compared_with_their_state_and_are_not_updated():
    model = Counted()
    report = m2ml.compare(lambda model, x: jnp.mean(model(x) ** 2), model, X, grad="model").check()
    assert paths(report) == [
        *(f"model.{name} afterwards" for name in ("calls", "linear.bias", "linear.kernel")),
        "",
        "gradient of model.linear.bias",
        "gradient of model.linear.kernel",
    ]
    assert int(model.calls[...]) == 0


def test_a_wrong_gradient_is_reported(monkeypatch):
    cpu = registry.get("cpu")
    right = cpu.compile
    monkeypatch.setattr(
        cpu, "compile", lambda p: lambda *xs: [y if i == 0 else y * 1.0001 for i, y in enumerate(right(p)(*xs))]
    )
    report = m2ml.compare(lambda x: jnp.sum(jnp.sin(x)), X, grad=True, backends=["cpu"])
    assert [output.ok for output in report.backends[0].outputs] == [True, False]


# The report -----------------------------------------------------------------------------------------


def classes(x):
    return jnp.stack([x[0], x[1] * 0, x[2] * jnp.float32(1e-39), x[3] / 0, jnp.log(-x[4])])


def test_each_class_of_elements_is_reported_with_its_worst_element():
    output = m2ml.compare(classes, np.ones(5, np.float32), backends=["cpu"]).check().backends[0].outputs[0]
    found = {part.name: part.elements for part in output.classes}
    assert found == {"finite": 1, "zero": 1, "subnormal": 1, "infinite": 1, "nan": 1}


def test_the_report_says_where_the_worst_element_is_and_both_values(monkeypatch):
    cpu = registry.get("cpu")
    right = cpu.compile

    def wrong(outs):
        y = np.array(outs[0])
        y[3, 1] += 1
        return [y]

    monkeypatch.setattr(cpu, "compile", lambda program: lambda *args: wrong(right(program)(*args)))
    report = m2ml.compare(lambda x: x + 1, X, backends=["cpu"])
    worst = report.backends[0].outputs[0].classes[0]
    assert worst.index == (3, 1)
    assert worst.got == pytest.approx(worst.expected + 1)
    assert "at [3, 1]:" in str(report)


def test_elements_decided_by_rounding_are_shown_not_judged():
    def ties(x):
        return jnp.argmax(jnp.stack([jnp.sum(x), jnp.sum(x[::-1])]))

    found = set()
    for seed in range(8):
        x = np.random.default_rng(seed).normal(size=1000).astype(np.float32)
        output = m2ml.compare(ties, x, backends=["cpu"]).check().backends[0].outputs[0]
        found |= {part.name for part in output.classes}
    assert "decided by rounding" in found


def test_json_has_a_stable_schema(monkeypatch):
    cpu = registry.get("cpu")
    monkeypatch.setattr(cpu, "compile", lambda p: lambda x, y: [np.full((2,), np.inf, np.float32)])
    said = json.loads(m2ml.compare(lambda x, y: x / y, X[0, :2], X[0, 2:4], backends=["cpu"]).json())
    assert said.keys() == {"schema", "name", "ok", "notes", "backends"}
    assert (said["schema"], said["ok"]) == (1, False)
    assert said["backends"]["cpu"].keys() == {"ok", "error", "outputs", "divergence"}
    output = said["backends"]["cpu"]["outputs"][0]
    names = "path dtype shape ok difference worst index unstable mismatch classes"
    assert output.keys() == set(names.split())
    assert output["difference"] == "inf"
    part = output["classes"][0]
    assert part.keys() == {"name", "elements", "difference", "worst", "index", "got", "expected"}
    assert (part["got"], part["elements"]) == ("inf", 2)
    divergence = said["backends"]["cpu"]["divergence"]
    assert divergence.keys() == {"primitive", "equation", "source", "path", "how", "output"}


def test_the_picture_shows_where_the_differences_sit(monkeypatch, tmp_path):
    from matplotlib.image import imread

    cpu = registry.get("cpu")
    right = cpu.compile

    def wrong(outs):
        y = np.array(outs[0])
        y[:200] += 1
        return [y]

    monkeypatch.setattr(cpu, "compile", lambda program: lambda *args: wrong(right(program)(*args)))
    x = np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32)
    report = m2ml.compare(jnp.sin, x, backends=["cpu"])
    shares = report.backends[0].outputs[0].map
    assert shares.shape == (256, 256)
    assert (shares[:127] > 1).all()
    assert (shares[129:] <= 1).all()
    report.picture(tmp_path / "where.png")
    pixels = imread(tmp_path / "where.png")[..., :3]
    red = (pixels[..., 0] > 0.4) & (pixels[..., 1] < 0.3)
    assert 0.05 < red.mean() < 0.5


def test_outputs_of_every_shape_have_a_picture(tmp_path):
    report = m2ml.compare(lambda x: (x[0, 0], x[:0], x[0], x.reshape(7, 1, 5), x > 0), X)
    report.picture(tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 1000

"""What happens on a provider's platform: fake ones, second CPU clients of JAX, each in a process of its own."""

import pytest
from fake_mac import distribution, mac, platform_plugin, python, site
from m2ml_jax_metal.providers import PROVIDERS


@pytest.fixture
def fake(tmp_path):
    """Runs code in a process where this provider is installed, as a second CPU client."""

    def run(name, code, **options):
        provider = PROVIDERS[name]
        folder = tmp_path / name
        if not folder.exists():
            site(folder, name, platform_plugin(provider.platform, priority=-1 if name == "metaljax" else 500))
        return python(code, folder, M2ML_CACHE=str(tmp_path), **options)

    return run


@pytest.mark.parametrize("name", ["jax-mps", "metaljax", "jax-graft"])
def test_a_training_loop_stays_on_the_provider(fake, name):
    """State goes round, results are the CPU's, and the platform is the provider's, with the CPU beside it."""
    said = fake(
        name,
        f"""
        import optax
        backend = start({name!r})
        assert jax.config.jax_platforms == "{PROVIDERS[name].platform},cpu"
        tx = optax.adamw(1e-2)

        def step(state, x):
            w, moments = state
            loss, grads = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)
            updates, moments = tx.update(grads, moments, w)
            return (optax.apply_updates(w, updates), moments), loss

        x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
        w = np.eye(8, dtype="float32")
        losses = {{}}
        for name in ("jax_metal", "cpu"):
            state, run = (w, tx.init(w)), m2ml.jit(step, donate_argnames=("state",)).on(name)
            for _ in range(5):
                state, loss = run(state, x)
            m2ml.wait(state)
            assert all(registry.get(name).owns(leaf) for leaf in jax.tree.leaves(state))
            losses[name] = m2ml.get(loss)
        assert losses["jax_metal"] == losses["cpu"]
        print(m2ml.jit(step).on("jax_metal").explain(state, x))
        """,
    )
    assert f"the whole program runs on the JAX platform '{PROVIDERS[name].platform}' of {name}" in said


def test_arrays_of_one_platform_are_moved_to_the_other(fake):
    fake(
        "jax-mps",
        """
        backend = start("jax-mps")
        cpu = registry.get("cpu")
        double = m2ml.jit(lambda x, y: 2 * x + y)
        there = double.on("jax_metal")(np.ones(3, "float32"), 1.0)
        here = double.on("cpu")(np.ones(3, "float32"), 1.0)
        assert there.devices() == {backend.device} and here.devices() == {cpu.device} and cpu.device != backend.device
        assert backend.owns(there) and not backend.owns(here) and cpu.owns(here) and not cpu.owns(there)
        mixed = double.on("jax_metal")(here, there)
        assert mixed.devices() == {backend.device} and mixed.tolist() == [9.0] * 3
        mixed = double.on("cpu")(here, there)
        assert mixed.devices() == {cpu.device} and mixed.tolist() == [9.0] * 3
        """,
    )


def test_what_crosses_is_contiguous(fake):
    """A client that takes what it is given byte by byte would see the array the other way round."""
    fake(
        "jax-mps",
        """
        backend = start("jax-mps")
        put = jax.device_put
        seen = []
        jax.device_put = lambda xs, *a: (seen.extend(x.flags["C_CONTIGUOUS"] for x in xs), put(xs, *a))[1]
        x = np.arange(6.0, dtype="float32").reshape(2, 3)
        views = x[::-1], x.T, x[:, ::2], np.float32(3).reshape(())
        for view, one, of_all in zip(views, map(backend.from_host, views), backend.from_hosts(views)):
            np.testing.assert_array_equal(np.asarray(one), view)
            np.testing.assert_array_equal(np.asarray(of_all), view)
        assert seen == [True] * 8
        """,
    )


def test_dtypes_that_the_provider_lacks_are_refused_at_the_edge(fake):
    """With 64 bits on, nothing is narrowed: neither an argument, nor inside, nor what is put there."""
    said = fake(
        "jax-mps",
        """
        start("jax-mps")
        from m2ml.errors import UnsupportedDtype
        jax.config.update("jax_enable_x64", True)
        jit = lambda fn: m2ml.jit(fn, backend="jax_metal")
        print(raises(UnsupportedDtype, jit(lambda x: x + 1), np.ones(2)))
        wide_inside = jit(lambda x: x.astype("float64").sum().astype("float32"))
        print(raises(UnsupportedDtype, wide_inside, np.ones(2, "float32")))
        print(raises(UnsupportedDtype, jit(lambda x: x.astype("complex128").sum()), np.ones(2, "complex64")))
        print(raises(UnsupportedDtype, m2ml.put, np.ones(2), "jax_metal"))
        """,
    ).splitlines()
    assert said[0] == "<lambda> uses float64, which jax-mps 0.11.1 has not; use the backend 'cpu', or another dtype"
    assert "float64" in said[1]
    assert "complex128" in said[2]
    assert said[3].startswith("jax_metal has no float64 (an array put on jax_metal): jax-mps has it not")


def test_complex_numbers_are_for_those_that_have_them(fake):
    code = """
        start({!r}, jax={!r})
        from m2ml.errors import UnsupportedDtype
        abs2 = m2ml.jit(lambda x: (x * x.conj()).real, backend="jax_metal")
        {}
    """
    fake("jax-graft", code.format("jax-graft", "0.11.2", "assert abs2(np.complex64(3 + 4j)) == 25"))
    said = fake(
        "jax-metal", code.format("jax-metal", "0.5.0", "print(raises(UnsupportedDtype, abs2, np.complex64(1j)))")
    )
    assert "uses complex64, which jax-metal 0.1.1 has not" in said


def test_callbacks_run_where_they_can_and_on_the_cpu_elsewhere(fake):
    code = """
        backend = start({0!r})
        from m2ml.errors import FallbackWarning, UnsupportedPrimitive

        def fn(x):
            y = jax.pure_callback(lambda v: np.asarray(v) * 3, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
            return y + 1

        x = np.arange(3.0, dtype="float32")
        with caught(FallbackWarning) as found:
            run = m2ml.jit(fn, backend="jax_metal")
            for _ in range(2):
                y = run(x)
                assert y.tolist() == [1, 4, 7] and backend.owns(y)
        print(len(found), *found)
        if found:
            print(raises(UnsupportedPrimitive, m2ml.jit(fn, backend="jax_metal", strict=True), x))
            print(run.explain(x))
    """
    assert fake("jax-graft", code.format("jax-graft")) == "0"
    count, strict, *explained = fake("jax-mps", code.format("jax-mps")).splitlines()
    assert count.startswith("1 fn runs on the CPU: jax-mps 0.11.1 cannot call Python: pure_callback(float32[3])")
    assert strict.startswith("fn does not run on jax_metal: jax-mps 0.11.1 cannot call Python")
    assert strict.endswith("strict=True forbids the CPU")
    assert any("the whole program runs on the CPU: jax-mps 0.11.1 cannot call Python" in line for line in explained)


def test_an_operation_that_the_provider_lacks_moves_the_program_to_the_cpu_once(fake):
    """As jax-mps says it: at run time, from inside. What is wrong with the program itself stays an error."""
    said = fake(
        "jax-mps",
        """
        backend = start("jax-mps")
        from m2ml import XlaBackend
        from m2ml.errors import ExecutionError, FallbackWarning
        compile_, words, calls = XlaBackend.compile, ["Unsupported operation(s): stablehlo.odd"], []

        def compiled(self, program):
            run = compile_(self, program)

            def broken(*args):
                calls.append(1)
                raise ExecutionError(words[0])

            return broken if self is backend else run

        XlaBackend.compile = compiled
        with caught(FallbackWarning) as found:
            twice = m2ml.jit(lambda x: 2 * x, backend="jax_metal")
            assert [twice(np.float32(i)).tolist() for i in range(3)] == [0, 2, 4] and len(calls) == 1
        print(*found)
        print(raises(m2ml.UnsupportedPrimitive, m2ml.jit(lambda x: 2 * x, backend="jax_metal", strict=True), 1.0))
        words[0] = "Internal: the kernel was lost"
        print(raises(ExecutionError, m2ml.jit(lambda x: 3 * x, backend="jax_metal"), 1.0))
        """,
    ).splitlines()
    assert said[0] == "<lambda> runs on the CPU: Unsupported operation(s): stablehlo.odd"
    assert "strict=True forbids the CPU" in said[1]
    assert said[2] == "Internal: the kernel was lost"


def test_a_primitive_without_a_rule_moves_the_program_to_the_cpu(fake):
    """JAX itself says so when it lowers."""
    fake(
        "metaljax",
        """
        backend = start("metaljax")
        from m2ml import XlaBackend
        compile_ = XlaBackend.compile

        def compiled(self, program):
            if self is not backend:
                return compile_(self, program)

            def refuse(*args):
                raise m2ml.UnsupportedPrimitive("XLA has no rule for odd(float32[])")

            return refuse

        XlaBackend.compile = compiled
        with caught(m2ml.FallbackWarning) as found:
            assert m2ml.jit(lambda x: x + 1, backend="jax_metal")(1.0) == 2
        assert ["XLA has no rule for odd" in text for text in found] == [True]
        """,
    )


def test_donation_is_used_where_it_is_there_and_kept_from_those_that_lack_it(fake):
    code = """
        start({0!r})
        with caught(Warning) as found:
            fn = m2ml.jit(lambda state: state * 2, backend="jax_metal", donate_argnames="state")
            x = m2ml.put(np.ones(4, "float32"), "jax_metal")
            m2ml.wait(fn(x))
            print(x.is_deleted(), "cannot reuse them" in str(fn.explain(np.ones(4, "float32"))))
        assert not found
    """
    assert fake("jax-mps", code.format("jax-mps")) == "False True"
    assert fake("jax-graft", code.format("jax-graft")) == "True False"


def test_waiting_reads_where_waiting_does_nothing(fake):
    """On metaljax an element of each array is read; elsewhere nothing is."""
    code = """
        backend = start({0!r})
        arrays = [backend.from_host(np.ones(n, "float32")) for n in (0, 3, 1 << 15, 1 << 16)]
        read = []
        to_host = backend.to_host
        backend.to_host = lambda x: (read.append(x.size), to_host(x))[1]
        backend.wait(arrays)
        print(read)
    """
    assert fake("metaljax", code.format("metaljax")) == "[3, 1, 1]"
    assert fake("jax-mps", code.format("jax-mps")) == "[]"


def test_jax_that_has_started_without_the_platform_is_refused(fake):
    code = """
        {}
        from m2ml.errors import BackendUnavailable
        print(raises(BackendUnavailable, start, "jax-mps"))
    """
    told = fake("jax-mps", code.format("jnp.ones(3)"), JAX_PLATFORMS="cpu")
    assert "JAX was told to start 'cpu' only (JAX_PLATFORMS or jax_platforms), and jax-mps 0.11.1 is 'mps'" in told
    assert "set JAX_PLATFORMS=mps,cpu" in told
    later = fake(
        "jax-mps",
        code.format('jax.config.update("jax_platforms", "cpu"); jnp.ones(3); jax.config.update("jax_platforms", None)'),
    )
    assert "JAX could not start the platform 'mps' of jax-mps 0.11.1" in later
    assert "if JAX was used before jax_metal was first asked for, set JAX_PLATFORMS=mps,cpu" in later


def test_jax_that_has_started_with_the_platform_is_used(fake):
    fake(
        "jax-mps",
        """
        x = jnp.ones(3)
        backend = start("jax-mps")
        assert x.devices() == {backend.device} and m2ml.jit(lambda x: x + 1, backend="jax_metal")(x).tolist() == [2] * 3
        """,
    )


def test_the_cpu_is_put_beside_a_platform_that_was_asked_for_alone(fake):
    assert fake("jax-mps", "start('jax-mps'); print(jax.config.jax_platforms)", JAX_PLATFORMS="mps") == "mps,cpu"


def test_a_provider_that_cannot_start_costs_one_sentence(tmp_path):
    site(tmp_path / "site", "jax-mps", platform_plugin("mps", broken="No Metal device found"))
    said = python(
        """
        from m2ml.errors import BackendUnavailable
        print(raises(BackendUnavailable, start, "jax-mps"))
        print(m2ml.jit(lambda x: x + 1, backend="cpu")(1.0))
        """,
        tmp_path / "site",
        M2ML_CACHE=str(tmp_path),
        JAX_PLATFORMS="",
    ).splitlines()
    assert "No Metal device found" in said[0]


def test_doctor_and_verify_know_the_provider_without_starting_another(fake):
    said = fake(
        "jax-mps",
        """
        start("jax-mps")
        ladder.read_machine = lambda: fake_mac.mac("jax-mps", "metaljax", environment=os.environ)
        print(registry.variants("jax_metal"))
        """,
    )
    assert "'metaljax 0.11.9': {'M2ML_JAX_METAL_PROVIDER': 'metaljax'}" in said
    assert "'jax-mps 0.11.1': {'M2ML_JAX_METAL_PROVIDER': 'jax-mps'}" in said


def test_doctor_tells_the_ladder_whether_it_runs_or_not(fake):
    said = fake(
        "jax-mps",
        """
        pretend("jax-mps", "applejax", "metaljax", jax="0.12.0.1")
        print(m2ml.doctor())
        """,
    )
    reason, *notes = said[said.index("jax_metal: ") :].splitlines()
    assert "metaljax 0.11.9 needs jax<0.12,>=0.11, installed is 0.12.0.1; get one with: python -m pip install" in reason
    assert notes[0] == "  macOS 27.1 (27B78) on Apple M4"
    assert any("jax-mps 0.11.1 and applejax 0.9.7 both claim JAX's platform 'mps'" in note for note in notes)
    running = fake("jax-graft", 'pretend("jax-graft"); print(m2ml.doctor())')
    assert "\n  uses jax-graft 0.0.5 (platform 'mtl'): jax 0.11.2 and Python 3.12.1 are what it needs" in running


def test_the_record_of_a_mac_is_a_mac():
    assert mac(distribution("jax-mps")).distributions["jax-mps"].platforms == ("mps",)


@pytest.mark.slow
def test_the_conformance_kit_passes_on_a_fake_provider(fake):
    """Its gaps are strict both ways. (One check starts a process of its own, which does not believe to be on a Mac.)"""
    said = fake(
        "jax-mps",
        """
        from m2ml.cli import app
        pretend("jax-mps")
        parts = [word for part in ("contract", "dtypes", "programs") for word in ("--part", part)]
        app(["conformance", "jax_metal", "--examples", "3", *parts], standalone_mode=False)
        """,
    )
    (counts,) = (line.split()[1:] for line in said.splitlines() if line.startswith("all "))
    assert counts[1] == "-", said
    assert int(counts[2]) >= 38

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import m2ml
from m2ml.training import CheckpointError, checkpoint

STATE = {
    "weights": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.5, -0.0, np.inf], ml_dtypes.bfloat16)],
    "step": np.int32(7),
    "empty": np.zeros((0, 3), np.float16),
    "flags": np.array([True, False]),
    "key": jax.random.key(5),
    "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2),
}
LOSSES = np.array([3.0, 2.0], np.float32)


def save(folder: Path, state=STATE, step: int = 2) -> None:
    checkpoint.save(folder, state, step=step, losses=LOSSES, run={"task": "test"})


def assert_same(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_every_dtype_and_typed_keys_come_back_bit_for_bit(tmp_path):
    save(tmp_path)
    state, losses = checkpoint.load(tmp_path, STATE)
    assert_same(state, STATE)
    np.testing.assert_array_equal(losses, LOSSES)
    record = checkpoint.read_record(tmp_path)
    assert (record.step, record.run) == (2, {"task": "test"})
    assert record.arrays["state/weights/1"] == "bfloat16[3]"
    assert record.arrays["state/key"] == "key<fry>[]"


@pytest.mark.parametrize("backend", sorted(m2ml.backends()))
def test_a_backends_own_arrays_are_saved(tmp_path, backend):
    tree = {"w": np.arange(3, dtype=np.float32), "b": np.array([1, 2], ml_dtypes.bfloat16)}
    save(tmp_path, m2ml.put(tree, backend))
    assert_same(checkpoint.load(tmp_path, tree)[0], tree)


def test_a_new_checkpoint_replaces_the_old_one(tmp_path):
    save(tmp_path, step=2)
    save(tmp_path, {**STATE, "step": np.int32(8)}, step=3)
    assert int(checkpoint.load(tmp_path, STATE)[0]["step"]) == 8
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_between_write_and_rename_leaves_the_old_checkpoint(tmp_path, monkeypatch, crash_at):
    """``crash_at`` is the rename that does not happen: that of the arrays, or that of the record."""
    save(tmp_path)
    rename, calls = Path.replace, []

    def crash(self, target):
        calls.append(target)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, {**STATE, "step": np.int32(8)}, step=3)
    assert len(calls) == crash_at
    assert int(checkpoint.load(tmp_path, STATE)[0]["step"]) == 7
    save(tmp_path, {**STATE, "step": np.int32(9)}, step=4)
    assert int(checkpoint.load(tmp_path, STATE)[0]["step"]) == 9


SAVER = """
import sys, numpy as np
from pathlib import Path
from m2ml.training import checkpoint
for step in range(10**6):
    state = {"w": np.full((256, 256), step, np.float32)}
    checkpoint.save(Path(sys.argv[1]), state, step=step, losses=np.zeros(step % 7, np.float32), run={})
    if step == 0:
        print("begun", flush=True)
"""


def test_kill_9_at_any_time_leaves_a_whole_checkpoint(tmp_path):
    template = {"w": jax.ShapeDtypeStruct((256, 256), np.float32)}
    last = -1
    for delay in (0.0, 0.037):
        folder = tmp_path / str(delay)
        with subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        state, _ = checkpoint.load(folder, template)
        record = checkpoint.read_record(folder)
        assert (state["w"] == record.step).all()
        last = max(last, record.step)
    assert last > 0, "the process was always killed before its second checkpoint, so nothing was shown"


def damage_arrays(folder: Path, change) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_damaged_arrays_are_refused(tmp_path, change):
    save(tmp_path)
    damage_arrays(tmp_path, change)
    with pytest.raises(CheckpointError, match=r"arrays .* are damaged: the file is not the one that was written"):
        checkpoint.load(tmp_path, STATE)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: checkpoint.json cannot be read"):
        checkpoint.load(tmp_path, STATE)
    save(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"arrays .* cannot be read: No such file"):
        checkpoint.load(tmp_path, STATE)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"step": 1}', '{"step": 1, "unknown": 2}'])
def test_a_damaged_record_is_refused(tmp_path, content):
    save(tmp_path)
    (tmp_path / checkpoint.RECORD).write_text(content)
    with pytest.raises(CheckpointError, match="is damaged: it is not the record of a checkpoint"):
        checkpoint.load(tmp_path, STATE)


def test_another_format_is_refused(tmp_path):
    save(tmp_path)
    path = tmp_path / checkpoint.RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, but this version of m2ml reads format 1"):
        checkpoint.load(tmp_path, STATE)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({**STATE, "step": np.int64(7)}, "state/step is int32.. there and int64.. here"),
        ({**STATE, "more": np.int32(7)}, "state/more is missing there and int32.. here"),
        ({k: v for k, v in STATE.items() if k != "flags"}, r"state/flags is bool\[2\] there and not used here"),
        ({**STATE, "key": np.zeros(2, np.uint32)}, r"state/key is key<fry>\[\] there and uint32\[2\] here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, template, said):
    save(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(tmp_path, template)

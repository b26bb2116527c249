"""Files and folders that are there whole or not at all."""

import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from m2ml.files import scratch, whole

#: Writes half of a folder and waits to be killed.
HALF = """
import sys
from pathlib import Path
from m2ml.files import whole
with whole(Path(sys.argv[1]), folder=True) as hidden:
    (hidden / "config.json").write_text("{}")
    print("written", flush=True)
    sys.stdin.read()
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_one_and_not_before(tmp_path):
    target = tmp_path / "model [1]"
    process = subprocess.Popen(
        [sys.executable, "-c", HALF, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "written\n"
        hidden = f".{target.name}.{process.pid}.partial"
        with scratch(target):  # somebody is at work there
            assert hidden in names(tmp_path)
        assert names(tmp_path) == [hidden]
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [hidden]
    with whole(target, folder=True) as mine:
        assert names(tmp_path) == [mine.name]
        (mine / "config.json").write_text("whole")
    assert names(tmp_path) == [target.name]
    assert (target / "config.json").read_text() == "whole"


def test_files_may_be_read_by_whom_new_ones_may(tmp_path):
    """As safetensors writes them they may not."""
    before = os.umask(0o027)
    try:
        with whole(tmp_path / "model", folder=True) as hidden:
            save_file({"x": np.zeros(3)}, hidden / "model.safetensors")
            (hidden / "part").mkdir()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model" / "model.safetensors").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "model" / "part").stat().st_mode) == 0o750


def test_a_file_takes_the_place_of_another_only_when_it_is_whole(tmp_path):
    target = tmp_path / "kept"
    target.write_text("before")
    with pytest.raises(UnicodeEncodeError), whole(target) as hidden:
        hidden.write_text("half, then \ud800")
    assert target.read_text() == "before"
    with whole(target) as hidden:
        hidden.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert names(tmp_path) == ["kept"]

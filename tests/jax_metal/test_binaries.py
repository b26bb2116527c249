"""The macOS that a binary asks for is read from the binary."""

import struct

import pytest
from fake_mac import mach_o, metal_library
from m2ml_jax_metal.binaries import minimum_macos


@pytest.mark.parametrize("version", ["14.0", "26.6.2", "27.0"])
@pytest.mark.parametrize("make", [mach_o, metal_library])
def test_the_version_is_read(tmp_path, make, version):
    assert minimum_macos(make(tmp_path / "library", version)) == version


def test_of_a_universal_file_the_arm64_part_is_read(tmp_path):
    arm = mach_o(tmp_path / "arm", "27.0").read_bytes()
    intel = mach_o(tmp_path / "intel", "11.0").read_bytes()
    parts = struct.pack(">II", 0xCAFEBABE, 2)
    parts += struct.pack(">5I", 0x01000007, 3, 4096, len(intel), 12) + struct.pack(
        ">5I", 0x0100000C, 0, 8192, len(arm), 12
    )
    whole = tmp_path / "universal.dylib"
    whole.write_bytes(parts.ljust(4096, b"\0") + intel.ljust(4096, b"\0") + arm)
    assert minimum_macos(whole) == "27.0"


def test_the_older_load_command_is_read(tmp_path):
    header = struct.pack("<8I", 0xFEEDFACF, 0x0100000C, 0, 6, 1, 16, 0, 0)
    path = tmp_path / "old.dylib"
    path.write_bytes(header + struct.pack("<4I", 0x24, 16, 11 << 16 | 3 << 8, 0))
    assert minimum_macos(path) == "11.3"


@pytest.mark.parametrize("content", [b"", b"MTLB", b"\x7fELF" + bytes(64), struct.pack("<8I", 0xFEEDFACF, *[9] * 7)])
def test_other_files_say_nothing(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    assert minimum_macos(path) is None
    assert minimum_macos(tmp_path / "missing") is None

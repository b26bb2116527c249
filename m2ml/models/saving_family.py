"""Write an encoder or a model of images as a Hugging Face folder, in another dtype if asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from m2ml.models.checkpoints import Checkpoint
from m2ml.models.checkpoints.folder import CONFIG, INDEX
from m2ml.models.families import family_of
from m2ml.models.saving import Files, Written, made
from m2ml.models.settings import DTYPES, CheckpointError
from m2ml.ops import Quantized

#: Endings of what lies beside weights: tokenizers, preprocessing, what sentence-transformers knows of a model.
_BESIDE = (".json", ".txt", ".model", ".jinja")


def convert_family(checkpoint: Checkpoint, target: Path, *, dtype: str | None = None) -> Written:
    """Write every tensor of ``checkpoint``, those of other tasks' heads included, to the folder ``target``.

    Floating ones are written in ``dtype``; unless given, in what they are. The parameters of the model are checked as
    they are when it is loaded. Raises `CheckpointError` where ``target`` exists, and what reading raises; then nothing
    is left there.
    """
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"weights are written in {', '.join(DTYPES)}; got {dtype}")
    family, settings = family_of(checkpoint.settings), checkpoint.settings
    with made(target) as folder:
        for _ in family.read(checkpoint, family.read_config(settings)):
            checkpoint.release()
        files = Files(folder)
        for name in checkpoint.shapes:
            value = checkpoint.read(name)
            if isinstance(value, Quantized):
                raise CheckpointError(f"{checkpoint.where(name)} is quantised; m2ml converts such language models only")
            floating = dtype is not None and not np.issubdtype(value.dtype, np.integer) and value.dtype != np.bool_
            files.hold(name, value.astype(DTYPES[dtype]) if dtype is not None and floating else value)
            checkpoint.release()
        files.finish({**settings.values, **({"dtype": dtype} if dtype else {})})
        _copy_beside(checkpoint.path, folder)
        return Written(files.bytes, 0.0)


def _copy_beside(source: Path, folder: Path) -> None:
    """What is no weight, and the configurations of parts, such as that of pooling, in folders of their own."""
    beside = [path for path in source.glob("*") if path.suffix in _BESIDE and path.name not in (CONFIG, INDEX)]
    for path in (*beside, *source.glob(f"*/{CONFIG}")):
        place = folder / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)

"""Compute golden_logits.json with transformers: ``pip install torch transformers``, then run this file."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoints import CASES, GOLDEN, LENGTHS, tokens, weight


def computed(name: str) -> dict[str, Any]:
    """Configuration, tensors and the logits of the last three tokens of each row, of one case."""
    import transformers

    kind, settings = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        from safetensors import safe_open

        with safe_open(f"{folder}/model.safetensors", "np") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
        from safetensors.numpy import save_file

        save_file({k: weight(k, tuple(s)) for k, s in shapes.items()}, f"{folder}/model.safetensors", {"format": "pt"})
        content = json.loads((Path(folder) / "config.json").read_text())
        model = type(model).from_pretrained(folder, attn_implementation="eager").eval().float()
    rounded = [[[float(f"{x:.7g}") for x in place] for place in row] for row in last_logits(model).tolist()]
    return {"config": content, "tensors": shapes, "logits": rounded}


def last_logits(model: Any) -> Any:
    """What a model of transformers gives for the last three tokens of each row."""
    import torch

    ids = torch.tensor(tokens().astype(np.int64))
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long()).logits.numpy()
    return np.stack([row[length - 3 : length] for row, length in zip(logits, LENGTHS, strict=True)])


def write_golden(golden: Path, cases: Iterable[str], compute: Callable[[str], Any]) -> None:
    """Compute the cases that the command names, or all, and keep the others in the file."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = sys.argv[1:] or list(cases)
    found = json.loads(golden.read_text()) if golden.exists() else {}
    found |= {name: compute(name) for name in names}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in found.items())
    golden.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    write_golden(GOLDEN, CASES, computed)

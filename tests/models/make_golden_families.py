"""Compute golden_outputs.json with transformers: ``pip install torch transformers``, then run this file."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from family_cases import CASES, GOLDEN, inputs, kept, reads_texts, weight
from make_golden import write_golden


def computed(name: str) -> dict[str, Any]:
    """Configuration, tensors and outputs of one case."""
    import transformers
    from safetensors.numpy import load_file, save_file

    case = CASES[name]
    if not case.kind:
        return of_efficientnet_lite(name)
    config = getattr(transformers, f"{case.kind}Config")(**case.settings)
    config._attn_implementation = "eager"
    kind = getattr(transformers, case.model)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.safetensors"
        kind(config).save_pretrained(folder)
        shapes = {k: list(v.shape) for k, v in load_file(file).items() if v.dtype == np.float32}
        save_file({k: weight(k, tuple(s)) for k, s in shapes.items()}, file, {"format": "pt"})
        content = json.loads((Path(folder) / "config.json").read_text())
        model = kind.from_pretrained(folder, attn_implementation="eager").eval().float()
    output = output_of(name, model)
    return {"config": content, "tensors": shapes, "output": rounded(kept(name, output))}


def output_of(name: str, model: Any) -> Any:
    """What a model of transformers gives for the inputs of a case."""
    import torch

    of = text_output if reads_texts(name) else clip_output if name.startswith("clip") else image_output
    with torch.no_grad():
        return of(model, *inputs(name))


def rounded(output: Any) -> Any:
    return json.loads(json.dumps(output.tolist()), parse_float=lambda x: float(f"{float(x):.7g}"))


def of_efficientnet_lite(name: str) -> dict[str, Any]:
    """By the PyTorch module of the benchmarks: transformers has none."""
    import torch

    from m2ml.models.families import FAMILIES
    from m2ml.models.settings import Settings

    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from torch_efficientnet import EfficientNetLite

    content = CASES[name].settings
    model = EfficientNetLite(FAMILIES["efficientnet_lite"].read_config(Settings(content, name))).eval()
    tensors = {k: v for k, v in model.state_dict().items() if v.dtype == torch.float32}
    weights = {k: torch.tensor(weight(k, tuple(v.shape))) for k, v in tensors.items()}
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        output = image_output(model.double(), *(x.astype(np.float64) for x in inputs(name)))
    return {"config": content, "tensors": {k: list(v.shape) for k, v in tensors.items()}, "output": rounded(output)}


def text_output(model: Any, tokens: Any, lengths: Any) -> Any:
    import torch

    ids = torch.tensor(tokens.astype(np.int64))
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    return model.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.numpy()


def image_output(model: Any, images: Any) -> Any:
    import torch

    given = torch.tensor(images.transpose(0, 3, 1, 2))
    if not hasattr(model, "base_model_prefix"):
        return model(given).numpy()
    output = model(pixel_values=given)
    if hasattr(output, "logits"):
        return output.logits.numpy()
    if output.last_hidden_state.ndim == 4:  # a convolutional network
        return output.pooler_output.reshape(len(images), -1).numpy()
    return output.last_hidden_state[:, 0].numpy()


def clip_output(model: Any, images: Any, tokens: Any) -> Any:
    import torch

    ids = torch.tensor(tokens.astype(np.int64))
    return model(input_ids=ids, pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))).logits_per_image.numpy()


if __name__ == "__main__":
    write_golden(GOLDEN, CASES, computed)

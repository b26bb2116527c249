"""``m2ml convert`` and ``m2ml quantize``: a model in another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2ml.cli.console import plain_errors

if TYPE_CHECKING:
    from m2ml.models.checkpoints import Checkpoint
    from m2ml.models.saving import Format

Model = Annotated[Path, typer.Argument(help="Hugging Face folder, MLX-quantised folder or .gguf file.")]
Out = Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; what they are in if not given.")]
Bits = Annotated[int, typer.Option(help="2, 3, 4, 5, 6 or 8 bits per weight.")]
GroupSize = Annotated[int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")]
Mode = Annotated[str, typer.Option(help="affine, or mxfp4 (4 bits, groups of 32).")]


def convert(
    model: Model,
    out: Out,
    dtype: Dtype = None,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Write quantised weights as numbers.")] = False,
) -> None:
    """Write a model as a Hugging Face folder: config.json, safetensors and its tokenizer.

    Quantised weights are written as MLX packs them, which mlx-lm reads; with --dequantize as numbers, which
    transformers reads. The folder appears when it is whole.

    Examples:

    m2ml convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2 --dequantize --dtype bfloat16
    """
    with plain_errors():
        _write(model, out, dtype, None, dequantize)


def quantize(
    model: Model, out: Out, bits: Bits = 4, group_size: GroupSize = 64, mode: Mode = "affine", dtype: Dtype = None
) -> None:
    """Quantise a language model's matrices, and write it as MLX does.

    Examples:

    m2ml quantize models/qwen3 models/qwen3-4bit --bits 4 --group-size 64
    """
    with plain_errors():
        from m2ml.models.saving import Format
        from m2ml.models.settings import CheckpointError
        from m2ml.ops.quantize import check_format

        group_size = 32 if mode == "mxfp4" else group_size
        try:
            check_format("quantize", bits, group_size, mode)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        _write(model, out, dtype, Format(bits, group_size, mode), False)


def _write(model: Path, out: Path, dtype: str | None, quantise: Format | None, dequantise: bool) -> None:
    from m2ml.generation.language_model import tokenizer_of
    from m2ml.models.checkpoints import open_checkpoint
    from m2ml.models.families import FAMILIES, kind_of
    from m2ml.models.loading import config_of
    from m2ml.models.saving import convert
    from m2ml.models.tokenizer import saved

    checkpoint = open_checkpoint(model)
    if kind_of(checkpoint.settings) in FAMILIES:
        return _write_family(checkpoint, out, dtype, quantise)
    tokenizer = tokenizer_of(checkpoint)
    written = convert(
        checkpoint,
        config_of(checkpoint),
        out,
        dtype=dtype,
        quantise=quantise,
        dequantise=dequantise,
        extra=lambda folder: saved(tokenizer, folder) if tokenizer else None,
    )
    moved = f"; a weight moved by up to {written.largest_change:.1%} of its tensor's largest" if quantise else ""
    typer.echo(f"wrote {out}: {written.bytes / 1e6:,.1f} MB of weights{moved}")
    return None


def _write_family(checkpoint: Checkpoint, out: Path, dtype: str | None, quantise: Format | None) -> None:
    from m2ml.models.families import kind_of
    from m2ml.models.saving_family import convert_family
    from m2ml.models.settings import CheckpointError

    if quantise is not None:
        kind = kind_of(checkpoint.settings)
        raise CheckpointError(f"{checkpoint.path} is a {kind}; m2ml quantises language models only")
    written = convert_family(checkpoint, out, dtype=dtype)
    typer.echo(f"wrote {out}: {written.bytes / 1e6:,.1f} MB of weights")

"""What a family of models is: its module, how its configuration reads, and what its tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax

from m2ml.arrays import put as to_backend
from m2ml.models.checkpoints import Checkpoint
from m2ml.models.convolution import fold_norms
from m2ml.models.functional import functional
from m2ml.models.loading import Names, converted, put, read_tensor, refuse_left_over
from m2ml.models.settings import BROKEN, CheckpointError, Settings
from m2ml.models.weights import Path, Source, Tensor

#: The tensor of a parameter, or those that follow each other in its rows, by their names in a checkpoint.
Theirs = str | tuple[str, ...]

#: A parameter's last name here -> in a checkpoint.
_LAST = {
    "weight": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}


@dataclass(frozen=True)
class Family:
    """A model's module, its configuration from a checkpoint's, and the names of its tensors.

    ``names`` maps the path of a parameter, or of a module without the parameter's own name, to the names in a
    checkpoint; ``{}`` stands for each number in it. It may be a function of the configuration. Tensors may begin with
    one of ``prefixes``; those that begin with one of ``heads``, after such a prefix or none, are other tasks', and
    those that end with one of ``buffers`` are no weights.
    """

    module: Any
    config: Callable[[Settings], Any]
    names: Mapping[str, Theirs] | Callable[[Any], Mapping[str, Theirs]]
    prefixes: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    def read_config(self, settings: Settings) -> Any:
        """The configuration. Raises `CheckpointError` for one that does not fit together."""
        try:
            return self.config(settings)
        except CheckpointError:
            raise
        except BROKEN as error:
            raise settings.broken(str(settings.get("model_type")), error) from error

    def sources(self, config: Any) -> Iterator[Source]:
        """Every parameter of the module, with the tensors it is made of and the shapes they must have."""
        # A checkpoint has its batch norms, whether or not the model will.
        kept = replace(config, folded=False) if getattr(config, "folded", False) else config
        shapes = functional(self.module, kept).shapes()
        names = self.names if isinstance(self.names, Mapping) else self.names(config)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            path = tuple(key.key for key in keys)
            theirs = _theirs(names, path)
            shape = leaf.shape if len(leaf.shape) != 4 else (leaf.shape[3], leaf.shape[2], *leaf.shape[:2])
            shape = (shape[0] // len(theirs), *shape[1:]) if shape else shape
            # Convolutions are stored [out, in, height, width].
            axes = (2, 3, 1, 0) if len(shape) == 4 else ()
            yield Source(path, tuple(Tensor(name, shape) for name in theirs), axes=axes)

    def read(self, checkpoint: Checkpoint, config: Any) -> Iterator[tuple[Path, Any]]:
        """Each parameter by its path, checked, as NumPy arrays.

        Raises `CheckpointError` for tensors that are missing, left over, of another shape or not finite.
        """
        wanted, names = list(self.sources(config)), self.names_in(checkpoint)
        used = {names[tensor.name] for source in wanted for tensor in source.parts if tensor.name in names}
        refuse_left_over(checkpoint, [n for n in checkpoint.shapes if n not in used and not self._is_other(n)])
        for source in wanted:
            yield source.path, source.joined([read_tensor(checkpoint, names, tensor) for tensor in source.parts])

    def load_params(self, checkpoint: Checkpoint, config: Any, *, backend: str) -> Any:
        """The parameters as arrays of ``backend`` in the dtype of ``config``; packed weights stay packed."""
        if getattr(config, "folded", False):
            return self._folded(checkpoint, config, backend)
        tree: dict[Any, Any] = {}
        for path, value in self.read(checkpoint, config):
            put(tree, path, to_backend(converted(value, config.dtype), backend))
            checkpoint.release()
        return tree

    def _folded(self, checkpoint: Checkpoint, config: Any, backend: str) -> Any:
        """Parameters with batch norms made part of convolutions; such models are small, so that all are read first."""
        tree: dict[Any, Any] = {}
        for path, value in self.read(checkpoint, config):
            put(tree, path, value)
        folded = fold_norms(tree, config.norm_eps)
        return jax.tree.map(lambda x: to_backend(converted(x, config.dtype), backend), folded)

    def names_in(self, checkpoint: Checkpoint) -> Names:
        """The names of tensors in this checkpoint by their usual ones."""
        return Names(checkpoint, [("", prefix) for prefix in self.prefixes])

    def _is_other(self, name: str) -> bool:
        bare = next((name.removeprefix(p) for p in self.prefixes if name.startswith(p)), name)
        return bare.startswith(self.heads) or name.endswith(self.buffers)


def layer_names(ours: str, theirs: str, names: Mapping[str, Theirs]) -> dict[str, Theirs]:
    """``names`` of one layer's parts, each behind the beginnings of its path and of its tensors' names."""
    return {
        ours + name: theirs + found if isinstance(found, str) else tuple(theirs + each for each in found)
        for name, found in names.items()
    }


def _theirs(names: Mapping[str, Theirs], path: Path) -> tuple[str, ...]:
    """The tensors of the parameter at ``path``, whose numbers a name may leave open."""
    numbers = [part for part in path if isinstance(part, int)]
    exact, open_ = ".".join(map(str, path)), ".".join("{}" if isinstance(part, int) else part for part in path)
    found, last = names.get(exact) or names.get(open_), ""
    if found is None:
        (exact, _, own), open_ = exact.rpartition("."), open_.rpartition(".")[0]
        found, last = names.get(exact) or names[open_], f".{_LAST[own]}"
    return tuple(name.format(*numbers) + last for name in ((found,) if isinstance(found, str) else found))


def pair_of(s: Settings, name: str, default: int | None = None) -> tuple[int, int]:
    """Height and width, which are one number where they are equal."""
    value = s.get(name, default)
    pair = value if isinstance(value, list | tuple) else [value, value]
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n < 2**20 for n in pair):
        raise s.wrong(name, value, "it must be a whole number from 1 on, or a height and a width")
    return pair[0], pair[1]


def classes_of(s: Settings) -> int | None:
    """How many classes an image classifier has; None where the checkpoint is no classifier."""
    if not any(str(name).endswith("ForImageClassification") for name in s.get("architectures", [])):
        return None
    return len(s.part("id2label").values) or s.integer("num_labels", 2)

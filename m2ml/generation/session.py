"""A batch of texts that a model is reading and writing: its cache, and the compiled programs that move it on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import m2ml
from m2ml import ops
from m2ml.errors import M2mlError
from m2ml.generation.language_model import LanguageModel
from m2ml.generation.sampling import Sampling
from m2ml.models.decoder import Decoder
from m2ml.models.functional import functional
from m2ml.models.kv_cache import KVCache, grown, make_cache

#: Tokens read at a time, at most; a shorter rest is padded to one of few sizes, for each is a program of its own.
CHUNK = 512
_SIZES = (1, 16, 64, 256, CHUNK)

#: Room for tokens grows in these steps, and by doubling beyond the last.
_CAPACITIES = (64, 128, 256, 512, 768, 1024)


def capacity_for(tokens: int) -> int:
    """Room for at least so many tokens."""
    for capacity in _CAPACITIES:
        if tokens <= capacity:
            return capacity
    return 1 << (tokens - 1).bit_length()


class Programs:
    """What is compiled of a model: reading a chunk, choosing a token, and one whole step of writing."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._decoder = model, functional(Decoder, model.config)
        self._leaves, self._tree = jax.tree.flatten(model.params)
        self.read = self._of_params(self._read, "cache")
        self.choose: Callable[[Sampling], Any] = functools.cache(lambda s: self._of_params(self._choosing(s)))
        self.step: Callable[[Sampling], Any] = functools.cache(lambda s: self._of_params(self._stepping(s), "cache"))
        self.grow: Callable[[int], Any] = functools.cache(self._growing)
        self.rewind = self._jit(_rewound, "cache")

    def _jit(self, fn: Callable[..., Any], donated: Sequence[str] | str = ()) -> Any:
        return m2ml.jit(fn, backend=self._model.backend, donate_argnames=donated)

    def _of_params(self, fn: Callable[..., Any], donated: Sequence[str] | str = ()) -> Callable[..., Any]:
        """``fn(params, ...)`` compiled, as a function of the rest.

        Parameters go in as a list: nested dictionaries of them would be walked and compared at every step.
        """

        @functools.wraps(fn)
        def of_leaves(leaves: Sequence[Any], *rest: Any) -> Any:
            return fn(jax.tree.unflatten(self._tree, leaves), *rest)

        return functools.partial(self._jit(of_leaves, donated), self._leaves)

    def _read(self, params: Any, cache: KVCache, tokens: Any, counts: Any, last: Any) -> tuple[Any, KVCache]:
        """``last[b, embed]``, what the last norm gave of each row's last token, and the cache."""
        newest, cache = self._decoder.apply(params, tokens, cache, counts=counts, method="newest")
        return jnp.where(counts[:, None] > 0, newest, last), cache

    def _choosing(self, sampling: Sampling) -> Callable[..., Any]:
        def choose(params: Any, last: Any, bits: Any) -> Any:
            logits = self._decoder.apply(params, last, method="logits")
            return ops.sample_token(logits, bits, **sampling.settings())

        return choose

    def _stepping(self, sampling: Sampling) -> Callable[..., Any]:
        choose = self._choosing(sampling)

        def step(params: Any, cache: KVCache, tokens: Any, bits: Any) -> tuple[Any, KVCache]:
            x, cache = self._decoder.apply(params, tokens[:, None], cache, method="hidden")
            return choose(params, x[:, 0], bits), cache

        return step

    def _growing(self, capacity: int) -> Any:
        config = self._model.config
        return self._jit(lambda cache: grown(cache, config, capacity))


def _rewound(cache: KVCache, lengths: Any) -> KVCache:
    import dataclasses

    return dataclasses.replace(cache, lengths=lengths)


class Session:
    """Rows of tokens that ``model`` has read or written; ``tokens`` are those in the cache.

    ``cache_bits=8`` keeps keys and values in 8 bits.
    """

    def __init__(self, model: LanguageModel, rows: int = 1, *, cache_bits: int | None = None, room: int = 0) -> None:
        self.model, self.programs = model, programs_of(model)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self._ropes = [block.rope for block in model.config.blocks if block.rope]
        # Of a text that is to become long, the beginning is read as the short one that it is.
        self.capacity = self._capacity_for(0 if any(rope.long_factors for rope in self._ropes) else room)
        self.bits = cache_bits
        self.cache: Any = self._empty()
        self._last: Any = np.zeros((rows, model.config.embed_dim), jnp.dtype(model.config.dtype))

    def _capacity_for(self, tokens: int) -> int:
        """Room for so many tokens, but none for more than are turned alike."""
        return min([capacity_for(tokens), *(rope.original for rope in self._ropes if rope.original >= max(tokens, 1))])

    def _empty(self) -> KVCache:
        """As NumPy arrays: the first program that takes them moves them to the backend, faster than one by one."""
        return make_cache(self.model.config, len(self.tokens), self.capacity, bits=self.bits)

    @property
    def longest(self) -> int:
        return max(map(len, self.tokens))

    def read(self, rows: Sequence[Sequence[int]]) -> None:
        """Read more tokens of each row, in chunks; of each at least one to begin with, and of any number."""
        self._check(rows)
        self.reserve(self.longest + max(map(len, rows)))
        start, longest = 0, max(map(len, rows))
        while start < longest:
            size = min(CHUNK, longest - start)
            counts = np.array([min(max(len(row) - start, 0), size) for row in rows], np.int32)
            self._read_chunk([row[start : start + size] for row in rows], counts)
            start += size

    def _read_chunk(self, rows: Sequence[Sequence[int]], counts: Any) -> None:
        size = next(s for s in _SIZES if s >= counts.max())
        size = size if self.longest + size <= self.capacity else int(counts.max())
        padded = np.zeros((len(rows), size), np.int32)
        for row, new, held in zip(padded, rows, self.tokens, strict=True):
            row[: len(new)] = new
            held.extend(map(int, new))
        self._last, self.cache = self.programs.read(self.cache, padded, counts, self._last)

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        vocabulary, context = self.model.config.vocab_size, self.model.config.context
        for i, row in enumerate(rows):
            if not self.tokens[i] and not len(row):
                raise M2mlError(f"prompt {i} has no tokens; give it some text")
            for token in row:
                if not 0 <= token < vocabulary:
                    raise M2mlError(f"prompt {i} has the token {token}; this model's are 0 to {vocabulary - 1}")
            if len(self.tokens[i]) + len(row) > context:
                raise M2mlError(
                    f"prompt {i} comes to {len(self.tokens[i]) + len(row)} tokens, but {self.model.name} was made for"
                    f" {context}; shorten it"
                )

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens per row.

        Where longer texts are turned otherwise, what was read is read again.
        """
        if tokens <= self.capacity:
            return
        before, self.capacity = self.capacity, self._capacity_for(tokens)
        if self.longest and any(r.factors_for(before) != r.factors_for(self.capacity) for r in self._ropes):
            rows, self.tokens = self.tokens, [[] for _ in self.tokens]
            self.cache = self._empty()
            self.read(rows)
        else:
            self.cache = self.programs.grow(self.capacity)(self.cache)

    def choose(self, sampling: Sampling, bits: Any) -> Any:
        """The token after what was read, int32 ``[rows]`` of the backend."""
        return self.programs.choose(sampling)(self._last, bits)

    def step(self, tokens: Any, sampling: Sampling, bits: Any) -> Any:
        """Read one token of each row and choose the next; returns before either is computed.

        What is read is not yet known here: `wrote` says it afterwards.
        """
        chosen, self.cache = self.programs.step(sampling)(self.cache, tokens, bits)
        return chosen

    def wrote(self, tokens: Sequence[int]) -> None:
        """Note the tokens that the last `step` read."""
        for row, token in zip(self.tokens, tokens, strict=True):
            row.append(int(token))

    def rewind(self, length: int) -> bool:
        """Forget all but the first ``length`` tokens of every row; False where a ring has overwritten them."""
        if any(layer.window is not None for layer in self.cache.layers):
            return all(len(row) == length for row in self.tokens)
        self.tokens = [row[:length] for row in self.tokens]
        lengths = np.array([len(row) for row in self.tokens], np.int32)
        self.cache = self.programs.rewind(self.cache, lengths)
        return True


def programs_of(model: LanguageModel) -> Programs:
    """The programs of a model, made once."""
    if not hasattr(model, "_programs"):
        object.__setattr__(model, "_programs", Programs(model))
    found: Programs = model._programs  # type: ignore[attr-defined]
    return found

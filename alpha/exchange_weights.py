"""Weights on their way: the tensors of another format as parts of Alpha's parameters, in both directions.

A format is something that has tensors by name (`TensorSource`). Parameters are made one after another, so that nothing
holds a model twice. Knows the formats by the table in `exchange` only.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alpha.config import ModelConfig
from alpha.errors import AlphaError
from alpha.exchange import Architecture, Names, widened
from alpha.files import Progress
from alpha.gpt import parameter_specs
from alpha.parameters import ParameterSpec
from alpha.safetensors_file import Array

_MODULE = re.compile(r"(?:h\.([0-9]+)\.)?(.+)\.(weight|bias)")


class TensorSource(Protocol):
    """Tensors by name, read when they are asked for."""

    name: str
    """What errors call it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Array:
        """A tensor of floating-point numbers."""


@dataclass(frozen=True)
class Piece:
    """A tensor elsewhere and the part of a parameter that it is: columns `start` to `start + width` of the last axis.

    `shape` is its shape elsewhere. `interleaved_heads` is 0, or the number of heads whose rows are reordered.
    """

    name: str
    parameter: str
    start: int
    width: int
    shape: tuple[int, ...]
    transposed: bool
    interleaved_heads: int

    def taken_from(self, parameter: Array) -> Array:
        """The tensor, from the parameter: a view where nothing is reordered."""
        part = parameter[..., self.start : self.start + self.width]
        part = part.T if self.transposed else part
        return _reordered(part, self.interleaved_heads, 2) if self.interleaved_heads else part

    def put_into(self, parameter: Array, tensor: Array) -> None:
        """Write the tensor to its place in the parameter."""
        if self.interleaved_heads:
            tensor = _reordered(tensor, self.interleaved_heads, tensor.shape[0] // self.interleaved_heads // 2)
        parameter[..., self.start : self.start + self.width] = tensor.T if self.transposed else tensor


def _reordered(rows: Array, heads: int, outer: int) -> Array:
    """Rows of heads, [heads * D, ...], each head's as [outer, D / outer] transposed: 2 makes halves pairs, D/2 undoes
    that."""
    return rows.reshape(heads, outer, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def pieces(config: ModelConfig, vocab_size: int, names: Names) -> Iterator[Piece]:
    """Every tensor that a model has elsewhere, with its place in Alpha's parameters; in their order."""
    specs = parameter_specs(config, vocab_size)
    parts = {spec.name.removesuffix(".weight"): spec.parts for spec in specs if spec.parts}
    for spec in specs:
        block, module, kind = _module_of(spec.name)
        theirs = names.modules[module]
        widths = parts[spec.name.rpartition(".")[0]] if len(theirs) > 1 else spec.shape[-1:]
        start = 0
        for index, (name, width) in enumerate(zip(theirs, widths, strict=True)):
            transposed = names.transposed and len(spec.shape) == 2 and module not in ("wte", "wpe", "lm_head")
            shape = (width, spec.shape[0]) if transposed else (*spec.shape[:-1], width)
            is_rotated = names.interleaved and module == "attn.c_attn" and index < 2
            heads = (config.heads, config.kv_heads)[index] if is_rotated else 0
            yield Piece(f"{name.format(block)}.{kind}", spec.name, start, width, shape, transposed, heads)
            start += width


def _module_of(parameter: str) -> tuple[str, str, str]:
    match = _MODULE.fullmatch(parameter)
    if match is None:
        raise TypeError(f"{parameter} is not the name of a parameter")
    return match[1] or "", match[2], match[3]


def widened_parameter(spec: ParameterSpec, config: ModelConfig, weights: Mapping[str, Array]) -> Array:
    """A parameter of the widened model, from those of the model: zero biases, repeated key and value heads."""
    array = weights.get(spec.name)
    if array is None:
        return np.zeros(spec.shape, np.float32)
    if array.shape == spec.shape:
        return array
    H, G, D = config.heads, config.kv_heads, config.head_width
    heads = array.reshape(*array.shape[:-1], H + 2 * G, D)
    places = [*range(H), *np.repeat(range(H, H + G), H // G), *np.repeat(range(H + G, H + 2 * G), H // G)]
    return heads[..., places, :].reshape(spec.shape)


class Exported:
    """The tensors of a model under the names of a format: `pieces` by name, and `made(name)`, float32."""

    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        vocab_size: int,
        names: Names,
        weights: Mapping[str, Array],
    ) -> None:
        wide = widened(architecture, config)
        self._config, self._weights = config, weights
        self._specs = {spec.name: spec for spec in parameter_specs(wide, vocab_size)}
        self.pieces = {piece.name: piece for piece in pieces(wide, vocab_size, names)}

    @property
    def size(self) -> int:
        """The elements of all tensors."""
        return sum(math.prod(piece.shape) for piece in self.pieces.values())

    def made_in_turn(self, progress: Progress) -> Callable[[str], Array]:
        """`made`, which tells `progress` the bytes done and all bytes, in float32."""
        done, total = 0, 4 * self.size

        def make(name: str) -> Array:
            nonlocal done
            array = self.made(name)
            done += 4 * array.size
            progress("writing", done, total)
            return array

        return make

    def made(self, name: str) -> Array:
        piece = self.pieces[name]
        parameter = widened_parameter(self._specs[piece.parameter], self._config, self._weights)
        return np.ascontiguousarray(piece.taken_from(parameter), np.float32)


class Imported:
    """The parameters of a model whose tensors are somewhere else: `shapes` by name, and `made(name)`, float32.

    Raises AlphaError when a tensor is missing, left over or of another shape.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, names: Names, source: TensorSource) -> None:
        self._source = source
        self._pieces: dict[str, list[Piece]] = {}
        self.shapes = {spec.name: spec.shape for spec in parameter_specs(config, vocab_size)}
        left_over = {name for name in source.shapes if not names.buffers.fullmatch(name)}
        for piece in pieces(config, vocab_size, names):
            self._pieces.setdefault(piece.parameter, []).append(piece)
            shape = source.shapes.get(piece.name)
            if shape is None:
                raise AlphaError(f"{source.name} lacks the tensor {piece.name!r}.")
            if shape != piece.shape:
                raise AlphaError(
                    f"The tensor {piece.name!r} of {source.name} has shape {list(shape)}, but its configuration asks "
                    f"for {list(piece.shape)}."
                )
            left_over.discard(piece.name)
        if left_over:
            raise AlphaError(
                f"{source.name} has the tensor {min(left_over)!r}, for which this kind of model has no place."
            )

    def made(self, name: str) -> Array:
        """A parameter, read from the source."""
        parameter = np.empty(self.shapes[name], np.float32)
        for piece in self._pieces[name]:
            piece.put_into(parameter, self._source.read(piece.name))
        return parameter


@contextmanager
def made_ahead(make: Callable[[str], Array], names: Iterable[str]) -> Iterator[Callable[[str], Array]]:
    """`make` for names that are asked for in this order: each is made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = iter(names)
        pending: dict[str, Future[Array]] = {}

        def start_next() -> None:
            if (name := next(coming, None)) is not None:
                pending[name] = pool.submit(make, name)

        def take(name: str) -> Array:
            array = pending.pop(name).result()
            start_next()
            return array

        start_next()
        yield take

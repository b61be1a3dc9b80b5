"""What an optimizer is: it updates parameters from their gradients, in place, by backend operations alone.

An update is part of a recorded step, so nothing here looks at a value: whether the step counts, and by how much the
gradients are scaled, comes in arrays. Knows nothing about models, losses or learning-rate schedules.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from alpha.backend import Backend, UpdateControl
from alpha.backend_primitives import Array
from alpha.errors import AlphaError
from alpha.parameters import Parameters, ParameterSpec


class Optimizer(ABC):
    """Holds the state (moments and the like) that belongs to some parameters."""

    def __init__(self, parameters: Parameters) -> None:
        self.backend = parameters.backend
        self.dtype = parameters.values.dtype

    @abstractmethod
    def update(self, control: UpdateControl) -> None:
        """One step on the parameters and the state; neither changes in any bit when the control does not accept it."""

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """The arrays that a resumed run needs, by name; what belongs to a parameter ends in the parameter's name."""

    def load_state(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the state from arrays by name. Raises AlphaError, and changes nothing, when they are not of its form."""
        load_arrays(self.backend, self.state(), values)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are neighbours in the flat arrays and alike in weight decay; the arrays are their flat part."""

    specs: tuple[ParameterSpec, ...]
    values: Array
    gradients: Array
    backend: Backend

    def weight_decay(self, weight_decay: float) -> float:
        """The decay that applies to this group: `weight_decay` or none."""
        return weight_decay if self.specs[0].decay else 0.0

    def zeros(self) -> Array:
        """A new flat array with one element per weight, for a moment."""
        return self.backend.zeros(self.values.shape, self.values.dtype)

    def views(self, flat: Array) -> Iterator[tuple[ParameterSpec, Array]]:
        """Each parameter's part, in its shape, of a flat array with one element per weight."""
        start = 0
        for spec in self.specs:
            yield spec, self.backend.reshape(self.backend.narrow(flat, 0, start, spec.size), spec.shape)
            start += spec.size

    def named(self, prefix: str, flat: Array) -> dict[str, Array]:
        """The views by `<prefix>.<parameter>`."""
        return {f"{prefix}.{spec.name}": view for spec, view in self.views(flat)}


def parameter_groups(
    parameters: Parameters, chosen: Callable[[ParameterSpec], bool] = lambda spec: True
) -> list[ParameterGroup]:
    """The chosen ones of the trained parameters in as few groups as their order allows."""
    backend, groups, start = parameters.backend, [], 0
    for (is_chosen, _), members in itertools.groupby(parameters.trained, lambda spec: (chosen(spec), spec.decay)):
        specs = tuple(members)
        size = sum(spec.size for spec in specs)
        if is_chosen:
            values, gradients = (
                backend.narrow(flat, 0, start, size) for flat in (parameters.values, parameters.gradients)
            )
            groups.append(ParameterGroup(specs, values, gradients, backend))
        start += size
    return groups


def load_arrays(backend: Backend, targets: Mapping[str, Array], values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Overwrite each target with the array of its name.

    Raises AlphaError, and changes nothing, when one is missing, unknown, of another shape or of another kind of number.
    """
    another = "the checkpoint belongs to another model or another optimizer"
    unknown = sorted(set(values) - set(targets))
    if unknown:
        raise AlphaError(f"The optimizer's state holds {unknown[0]!r}, which this run does not have: {another}.")
    for name, target in targets.items():
        if name not in values:
            raise AlphaError(f"The optimizer's state lacks {name!r}, which this run needs: {another}.")
        given = values[name]
        if given.shape != target.shape or given.dtype.kind != target.dtype.kind:
            raise AlphaError(
                f"The optimizer's state {name!r} is {given.dtype.name} {list(given.shape)}, but this run needs "
                f"{target.dtype.name} {list(target.shape)}: {another}."
            )
    for name, target in targets.items():
        backend.copy_into(target, backend.from_numpy(values[name].astype(target.dtype)))

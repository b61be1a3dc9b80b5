"""Optimizer steps on the device: one kernel over flat arrays, steered by arrays that live on the device, too.

A kernel's entry in the manifest is all that a step needs here: its method on the backend is made from that.

What changes in place must be contiguous to have a kernel; other arrays are updated by the composition of primitives.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_layout import THREADS, VECTOR, groups_for, vector_of
from alpha.backend_helios_primitives import HeliosPrimitives
from alpha.backend_updates import Updates

SUM_VECTORS = 4
"""Vectors that a thread adds up, at least, when there are many."""

MOST_SUMS = 1024


class Update(HeliosPrimitives):
    """Optimizer steps and what they need; the methods that `UPDATES` names are added below, from the manifest."""

    def sum_of_squares(self, x: HeliosArray) -> HeliosArray:
        """The order of summation depends on the size alone."""
        flat = self.contiguous(x)
        groups = max(1, min(MOST_SUMS, groups_for(flat.size, THREADS * VECTOR * SUM_VECTORS)))
        parts, total = self.new((groups,), "f32"), self.new((1,), "f32")
        for source, target, squared in ((flat, parts, 1), (parts, total, 0)):
            self.dispatch(
                "sum_of_squares",
                "f32",
                target.size,
                {"THREADS": THREADS, "VECTOR": vector_of(source), "SQUARED": squared},
                x=source,
                parts=target,
                count=source.size,
            )
        return total

    def copy_into_if(self, condition: HeliosArray, target: HeliosArray, source: HeliosArray) -> None:
        alike = target.shape == source.shape and target.element == source.element and target.itemsize == 4
        if not (alike and condition.size == 1 and target.is_contiguous):
            super().copy_into_if(condition, target, source)
            return
        self.dispatch(
            "copy_into_if",
            "bits32",
            groups_for(target.size, THREADS),
            {"THREADS": THREADS},
            target=target,
            source=self.contiguous(source),
            condition=condition,
            count=target.size,
        )


UPDATES = (*(name for name in vars(Updates) if name.endswith("_update")), "decayed_step")
"""The methods of `Updates` that update parameters in place; each has a kernel of its name."""


def _update_method(name: str) -> Callable[..., None]:
    """The method of `Backend` called `name`, as one dispatch of the kernel called so.

    The kernel's fields say what it is given: the method's arguments and the control's arrays by their names, `count`
    elements of the first, and `kept1` for 1 - beta1, rounded once.
    """
    composition: Callable[..., None] = getattr(Updates, name)
    signature = inspect.signature(composition)

    @functools.wraps(composition)
    def update(backend: Update, *operands: Any, **options: Any) -> None:
        given = signature.bind(backend, *operands, **options).arguments
        fields = backend.pipelines.kernel(name, "f32").fields
        if not all(given[field.name].is_contiguous for field in fields if field.direction == "inout"):
            composition(backend, *operands, **options)
            return
        flat = {key: backend.contiguous(each) for key, each in given.items() if isinstance(each, HeliosArray)}
        kept = {f"kept{key.removeprefix('beta')}": 1.0 - given[key] for key in given if key.startswith("beta")}
        count, vector = flat[fields[0].name].size, vector_of(*flat.values())
        values = given | vars(given["control"]) | kept | flat | {"count": count}
        backend.dispatch(
            name,
            "f32",
            groups_for(count, THREADS * vector),
            {"THREADS": THREADS, "VECTOR": vector},
            **{field.name: values[field.name] for field in fields},
        )

    return update


for _name in UPDATES:
    setattr(Update, _name, _update_method(_name))

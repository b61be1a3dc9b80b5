"""Optimizer steps on the device: one kernel over flat arrays, steered by arrays that live on the device, too.

What changes in place must be contiguous to have a kernel; other arrays are updated by the composition of primitives.
"""

from __future__ import annotations

from alpha.backend import AdamControl, Backend, UpdateControl
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_rows import THREADS, VECTOR, groups_for, vector_of

SUM_VECTORS = 4
"""Vectors that a thread adds up, at least, when there are many."""

MOST_SUMS = 1024


def sum_of_squares(backend: HeliosCore, x: HeliosArray) -> HeliosArray:
    """See `Backend.sum_of_squares`; the order of summation depends on the size alone."""
    flat = backend.contiguous(x)
    groups = max(1, min(MOST_SUMS, groups_for(flat.size, THREADS * VECTOR * SUM_VECTORS)))
    parts, total = backend.new((groups,), "f32"), backend.new((1,), "f32")
    for source, target, squared in ((flat, parts, 1), (parts, total, 0)):
        backend.dispatch(
            "sum_of_squares",
            "f32",
            target.size,
            {"THREADS": THREADS, "VECTOR": vector_of(source), "SQUARED": squared},
            x=source,
            parts=target,
            count=source.size,
        )
    return total


def copy_into_if(backend: HeliosCore, condition: HeliosArray, target: HeliosArray, source: HeliosArray) -> None:
    """See `Backend.copy_into_if`."""
    alike = target.shape == source.shape and target.element == source.element and target.itemsize == 4
    if not (alike and condition.size == 1 and target.is_contiguous):
        Backend.copy_into_if(backend, condition, target, source)
        return
    backend.dispatch(
        "copy_into_if",
        "bits32",
        groups_for(target.size, THREADS),
        {"THREADS": THREADS},
        target=target,
        source=backend.contiguous(source),
        condition=condition,
        count=target.size,
    )


def adamw_update(
    backend: HeliosCore,
    parameter: HeliosArray,
    gradient: HeliosArray,
    first: HeliosArray,
    second: HeliosArray,
    control: AdamControl,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """See `Backend.adamw_update`."""
    if not _flat(parameter, first, second):
        Backend.adamw_update(backend, parameter, gradient, first, second, control, beta1, beta2, epsilon, weight_decay)
        return
    _update(
        backend,
        "adamw_update",
        {"parameter": parameter, "gradient": gradient, "first": first, "second": second},
        control,
        gradient_scale=control.gradient_scale,
        correction1=control.correction1,
        correction2=control.correction2,
        beta1=beta1,
        kept1=1.0 - beta1,
        beta2=beta2,
        kept2=1.0 - beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
    )


def lion_update(
    backend: HeliosCore,
    parameter: HeliosArray,
    gradient: HeliosArray,
    momentum: HeliosArray,
    control: UpdateControl,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """See `Backend.lion_update`."""
    if not _flat(parameter, momentum):
        Backend.lion_update(backend, parameter, gradient, momentum, control, beta1, beta2, weight_decay)
        return
    _update(
        backend,
        "lion_update",
        {"parameter": parameter, "gradient": gradient, "momentum": momentum},
        control,
        gradient_scale=control.gradient_scale,
        beta1=beta1,
        kept1=1.0 - beta1,
        beta2=beta2,
        kept2=1.0 - beta2,
        weight_decay=weight_decay,
    )


def sgd_update(
    backend: HeliosCore,
    parameter: HeliosArray,
    gradient: HeliosArray,
    momentum: HeliosArray,
    control: UpdateControl,
    beta: float,
    weight_decay: float,
) -> None:
    """See `Backend.sgd_update`."""
    if not _flat(parameter, momentum):
        Backend.sgd_update(backend, parameter, gradient, momentum, control, beta, weight_decay)
        return
    _update(
        backend,
        "sgd_update",
        {"parameter": parameter, "gradient": gradient, "momentum": momentum},
        control,
        gradient_scale=control.gradient_scale,
        beta=beta,
        weight_decay=weight_decay,
    )


def decayed_step(
    backend: HeliosCore, parameter: HeliosArray, step: HeliosArray, control: UpdateControl, weight_decay: float
) -> None:
    """See `Backend.decayed_step`."""
    if not _flat(parameter):
        Backend.decayed_step(backend, parameter, step, control, weight_decay)
        return
    _update(backend, "decayed_step", {"parameter": parameter, "step": step}, control, weight_decay=weight_decay)


def _flat(*arrays: HeliosArray) -> bool:
    return all(each.is_contiguous for each in arrays)


def _update(
    backend: HeliosCore,
    kernel: str,
    arrays: dict[str, HeliosArray],
    control: UpdateControl,
    **arguments: HeliosArray | float,
) -> None:
    """Run an update on arrays of one size."""
    flat = {name: backend.contiguous(each) for name, each in arrays.items()}
    count, vector = flat["parameter"].size, vector_of(*flat.values())
    backend.dispatch(
        kernel,
        "f32",
        groups_for(count, THREADS * vector),
        {"THREADS": THREADS, "VECTOR": vector},
        learning_rate=control.learning_rate,
        accept=control.accept,
        count=count,
        **flat,
        **arguments,
    )

"""What a kernel takes over from the pass that rounds a gradient: when it may, and what it gives."""

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from helios_device import helios
from test_helios_addends import array, dispatch, normal

from alpha import backend_helios_linear
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_folding import fold_gradients, fold_scales
from alpha.backend_helios_planner import RECOMPUTING, Dispatch, arrange


def halves(address: int | None = None) -> HeliosArray:
    return array(address, element="f16")


def norm(dx: HeliosArray, dy: HeliosArray, rounded: HeliosArray | None = None) -> Dispatch:
    return dispatch("norm_backward", {}, dy=("in", dy), dx=("out", dx), rounded=("out", rounded))


def product(c: HeliosArray, factor: HeliosArray | None = None, name: str = "matmul_matrix") -> Dispatch:
    return dispatch(name, {}, a=("in", array(4096)), factor=("in", factor), c=("out", c))


def gradient(dy: HeliosArray, dh: HeliosArray, before: HeliosArray | None = None) -> Dispatch:
    arrays = {"dy": ("in", dy), "preactivation": ("in", before), "dh": ("out", dh)}
    return dispatch("matmul_gradient", {"ACTIVATION": 3}, **arrays)


def reader(x: HeliosArray) -> Dispatch:
    return dispatch("reduce", {}, x=("in", x), y=("out", array()))


def writer(x: HeliosArray) -> Dispatch:
    return dispatch("random_uint16", {}, y=("out", x))


class Maker:
    """As much of a backend as makes dispatches."""

    def make_dispatch(self, name: str, variant: str, groups: Any, constants: Any, operations: Any, **given: Any) -> Any:
        return SimpleNamespace(name=name, constants=constants, arguments=given)


def fold(dispatches: list[Dispatch], *new: HeliosArray) -> list[Any]:
    return fold_gradients(cast(Any, Maker()), dispatches, [each.storage for each in new], array(0).storage)


def folds(*dispatches: Dispatch, new: list[HeliosArray], result: HeliosArray | None = None) -> bool:
    made = cast(Any, Maker())
    left = fold_gradients(made, dispatches, [each.storage for each in new], (result or array(0)).storage)
    return len(left) < len(dispatches)


def test_a_norm_also_writes_its_gradient_in_sixteen_bits() -> None:
    dx, dh, dy = array(), halves(), halves(4096)
    made, used = norm(dx, dy), gradient(dx, dh)
    left = fold([made, reader(dx), used, reader(dx)], dx, dh)
    assert [each.kernel.name for each in left] == ["norm_backward", "reduce", "reduce"]
    assert left[0].arguments == {"dy": dy, "dx": dx, "rounded": dh}
    assert not folds(made, writer(dx), used, new=[dx, dh]), "it is changed in between"
    assert not folds(made, writer(dh), used, new=[dx, dh]), "the place is used for something else first"
    assert not folds(made, used, new=[dx]), "the place was there before"
    assert not folds(made, used, new=[dx, dh], result=dx)
    assert not folds(norm(dx, array(4096)), used, new=[dx, dh]), "it writes the type of dy"
    assert not folds(norm(dx, dy, halves()), used, new=[dx, dh]), "it writes one already"
    assert not folds(writer(dx), used, new=[dx, dh]), "that kernel cannot"
    assert not folds(used, new=[dx, dh])


@pytest.mark.parametrize("name", ["matmul_matrix", "matmul_tiled", "matmul_reduce"])
def test_a_product_multiplies_by_the_slope_of_the_activation_before_it(name: str) -> None:
    dy, dh, slope = halves(), halves(), halves(8192)
    made, used = product(dy, name=name), gradient(dy, dh, slope)
    (left,) = fold([made, used], dy, dh)
    assert (left.name, left.constants["FACTOR"]) == (name, 3)
    assert (left.arguments["c"], left.arguments["factor"]) == (dh, slope)
    assert not folds(made, reader(dy), used, new=[dy, dh]), "somebody needs it as it is"
    assert not folds(made, writer(slope), used, new=[dy, dh, slope]), "the slope is made in between"
    assert not folds(norm(dy, halves(4096)), used, new=[dy, dh]), "that kernel cannot"
    wide = array()
    assert not folds(product(wide), gradient(wide, dh, slope), new=[wide, dh]), "it would not be rounded in between"
    assert not folds(product(dy), gradient(dy, dh), new=[dy, dh]), "there is nothing to multiply by"


def test_a_norm_scales_the_gradient_that_it_reads() -> None:
    x, y, first, second = array(), array(), array(4096), array(8192)

    def scale(y: HeliosArray) -> Dispatch:
        arrays = {"x": ("in", x), "y": ("out", y), "first": ("in", first), "second": ("in", second)}
        made = dispatch("scale", {}, **arrays)
        made.arguments["factor"] = 0.5
        return made

    def left(*dispatches: Dispatch, new: list[HeliosArray], result: HeliosArray | None = None) -> list[Dispatch]:
        return fold_scales(list(dispatches), [each.storage for each in new], (result or array(0)).storage)

    user, dx = norm(array(12288), y), array(12288)
    (folded,) = left(scale(y), user, new=[x, y])
    assert folded.arguments["dy"].storage is x.storage
    assert [folded.arguments[name] for name in ("first_scale", "second_scale", "dy_scale")] == [first, second, 0.5]
    assert len(left(scale(y), reader(dx), user, new=[x, y])) == 2
    assert len(left(scale(y), reader(y), user, new=[x, y])) == 3, "somebody needs it as it is"
    assert len(left(scale(y), writer(x), user, new=[x, y])) == 3, "it is changed in between"
    assert len(left(scale(y), writer(second), user, new=[x, y])) == 3, "one of the numbers is"
    assert len(left(scale(y), user, new=[x])) == 2, "the place was there before"
    assert len(left(scale(y), user, new=[x, y], result=y)) == 2
    assert len(left(scale(y), reader(y), new=[x, y])) == 2, "that kernel cannot"


@pytest.mark.parametrize("kernel", RECOMPUTING)
def test_what_is_computed_again_is_so_no_earlier_than_the_dispatch_before_it(kernel: str) -> None:
    chain = [array() for _ in range(4)]
    steps = [dispatch("reduce", {}, x=("in", a), y=("out", b)) for a, b in itertools.pairwise(chain)]
    again, other = (dispatch(name, {}, x=("in", array(4096)), y=("out", array())) for name in (kernel, "reduce"))
    assert arrange([*steps, again, other]) == [[steps[0], other], [steps[1]], [steps[2], again]]


@pytest.mark.matrix_units
@pytest.mark.parametrize("kind", ["gelu", "relu2"])
def test_gradients_and_weights_are_those_of_passes_of_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = helios("f16")
    if backend.activation_element == "f32":
        pytest.skip("layers write 16 bits for each other only where there are matrix units")
    monkeypatch.setattr(backend, "stages", None)
    monkeypatch.setattr(backend_helios_linear, "KEPT_COLUMNS", 0)  # as where layers are wide
    flat = backend.zeros((2 * 16 * 24,))
    backend.copy_into(flat, normal(backend, 2 * 16 * 24))
    first = backend.reshape(backend.narrow(flat, 0, 0, 16 * 24), (16, 24))
    second = backend.reshape(backend.narrow(flat, 0, 16 * 24, 16 * 24), (24, 16))
    x, dy, weight, bias = (normal(backend, *shape, stream=8) for shape in ((9, 16), (9, 16), (16,), (24,)))

    def program() -> HeliosArray:
        # As in a transformer block: norm, layer with an activation, projection; and its gradients, down to a projection
        # before the norm.
        before, layer0 = backend.linear(x, backend.transpose(second, (1, 0)), training=True)
        hidden, layer1 = backend.linear(before, second, residual=x, training=True)
        normed, saved = backend.layer_norm(hidden, weight, weight, 1e-5, True)
        wide, layer2 = backend.linear(normed, first, bias, kind, training=True)
        y, layer3 = backend.linear(wide, second, residual=hidden, training=True)
        dwide, dweight3, _ = backend.linear_backward(dy, layer3)
        dnormed, dweight2, dbias = backend.linear_backward(dwide, layer2)
        dhidden, dscale, _ = backend.layer_norm_backward(dnormed, saved)
        dbefore, dweight1, _ = backend.linear_backward(dhidden, layer1)
        dx, dweight0, _ = backend.linear_backward(dbefore, layer0)
        backend.add_into(flat, 1.0)
        later, _ = backend.linear(normed, first, training=True)  # with the changed weights
        parts = [y, dweight3, dweight2, dbias, dhidden, dscale, dweight1, dx, dweight0, later]
        backend.add_into(flat, -1.0)
        return backend.concatenate([backend.reshape(backend.cast(each, np.float32), (each.size,)) for each in parts], 0)

    kernels: list[str] = []
    counted, arguments = ("matmul_gradient", "activation"), ("factor", "rounded", "preactivation")
    make = backend.make_program

    def listed(dispatches: Any, repeated: bool = True) -> int:
        if repeated and len(dispatches) > 1:
            kernels.extend(each.kernel.name for each in dispatches if each.kernel.name in counted)
            kernels.extend(name for each in dispatches for name in arguments if each.arguments.get(name))
        return make(dispatches, repeated)

    whole = np.round(backend.to_numpy(flat) * 64) / 64  # so that adding 1 and taking it away again changes nothing
    backend.copy_into(flat, backend.from_numpy(whole))
    eager = backend.to_numpy(program())
    monkeypatch.setattr(backend, "make_program", listed)
    recorded = backend.to_numpy(backend.record(program)())
    # The weights twice, x, and dy; nothing for the two gradients. GELU is computed again from what it was of, and the
    # slope of relu2 comes from its result.
    again = {"activation": 1, "preactivation": 1} if kind == "gelu" else {}
    assert Counter(kernels) == {"matmul_gradient": 3, "factor": 1, "rounded": 1, **again}
    exact = slice(0, 144 + 384), slice(-216, None)  # y and the gradient before the slope; the layer after the change
    assert all(np.array_equal(recorded[part], eager[part]) for part in exact)
    # A gradient that is multiplied where it is made is rounded once, not twice.
    assert np.abs(recorded - eager).max() < 2e-3 * np.abs(eager).max()

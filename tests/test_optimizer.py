"""Every optimizer against stored results of PyTorch, against its formula, and in what it must leave alone."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open

from alpha import optimizer, orthogonal, rng
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_cpu_ref_primitives import NumpyPrimitives
from alpha.backend_updates import UpdateControl
from alpha.config import OPTIMIZERS, ModelConfig, TrainingConfig, resolve_model
from alpha.errors import AlphaError
from alpha.gpt import parameter_specs
from alpha.optimizer import Optimizer, make_optimizer, parameter_groups
from alpha.parameters import Parameters, ParameterSpec

GOLDEN = Path(__file__).parent / "golden" / "optimizer.safetensors"
Values = dict[str, npt.NDArray[np.floating]]
SPECS = {"h.0.tall": (6, 4), "h.0.wide": (4, 10), "wte": (7, 4), "h.0.vector": (5,)}


@dataclass
class Setup:
    """An optimizer of parameters of given shapes, with deterministic values."""

    parameters: Parameters
    optimizer: Optimizer

    @property
    def backend(self) -> Backend:
        return self.parameters.backend

    def step(self, gradients: Values, lr: float = 0.01, scale: float = 1.0, accept: bool = True) -> None:
        for spec, view in self.parameters.views(self.parameters.gradients):
            self.backend.copy_into(view, self.backend.from_numpy(gradients[spec.name].astype(view.dtype)))
        dtype = self.parameters.values.dtype
        lr_array, scale_array = (self.backend.from_numpy(np.array([value], dtype)) for value in (lr, scale))
        self.optimizer.update(UpdateControl(lr_array, scale_array, self.backend.from_numpy(np.array([accept]))))

    def everything(self) -> dict[str, bytes]:
        arrays = {"values": self.parameters.values, **self.optimizer.state()}
        return {name: self.backend.to_numpy(array).tobytes() for name, array in arrays.items()}


def setup(
    optim: str,
    shapes: dict[str, tuple[int, ...]] = SPECS,
    dtype: npt.DTypeLike = np.float64,
    backend: Backend | None = None,
    **options: object,
) -> Setup:
    specs = [ParameterSpec(name, shape, copy_of(random(shape, 99))) for name, shape in shapes.items()]
    parameters = Parameters(backend or CpuRef(), specs, dtype)
    parameters.initialize()
    return Setup(parameters, make_optimizer(parameters, TrainingConfig(optim=optim, **options)))


def copy_of(values: npt.NDArray[np.float64]) -> Callable[[npt.NDArray[np.floating], int], None]:
    """What makes the initial values of a parameter these."""

    def initial(out: npt.NDArray[np.floating], start: int) -> None:
        out[:] = values.reshape(-1)[start : start + len(out)]

    return initial


def random(shape: tuple[int, ...], step: int) -> npt.NDArray[np.float64]:
    return rng.normal(int(np.prod(shape)), 1, rng.stream_of("test", *shape), step).reshape(shape)


def gradients_of(step: int, shapes: dict[str, tuple[int, ...]] = SPECS) -> Values:
    return {name: random(shape, step) for name, shape in shapes.items()}


# --- against PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [NumpyPrimitives, CpuRef])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_five_steps_equal_pytorch(optim: str, backend: Callable[[], Backend]) -> None:
    with safe_open(GOLDEN, "numpy") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        options = json.loads(file.metadata()["options"])
    names = ("tall", "vector", "wide")
    betas = {name: options[optim][name] for name in ("beta1", "beta2", "eps") if name in options[optim]}
    betas |= {"muon_momentum": options[optim]["momentum"]} if "momentum" in options[optim] else {}
    tested = setup(
        optim,
        {name: golden[f"initial.{name}"].shape for name in names},
        backend=backend(),
        weight_decay=options["weightDecay"],
        **betas,
    )
    tested.parameters.load({name: golden[f"initial.{name}"] for name in names})
    for step, lr in enumerate(golden["learning_rates"]):
        tested.step({name: golden[f"gradients.{name}"][step] for name in names}, lr)
        for name, values in tested.parameters.to_numpy().items():
            np.testing.assert_allclose(values, golden[f"{optim}.{name}"][step], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_float32_is_near_float64(optim: str) -> None:
    single, double = setup(optim, dtype=np.float32), setup(optim)
    for step in range(5):
        for each in (single, double):
            each.step(gradients_of(step), lr=0.01)
    for name, values in single.parameters.to_numpy().items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, double.parameters.to_numpy()[name], atol=2e-5)


# --- control ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, 0.5])
def test_a_step_that_is_not_accepted_changes_no_bit(optim: str, poison: float) -> None:
    skipping, plain = setup(optim), setup(optim)
    for step in range(3):
        before = skipping.everything()
        with np.errstate(invalid="ignore"):
            skipping.step({name: np.full(shape, poison) for name, shape in SPECS.items()}, scale=poison, accept=False)
        assert skipping.everything() == before
        for each in (skipping, plain):
            each.step(gradients_of(step))
        assert skipping.everything() == plain.everything() != before


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_gradient_scale_multiplies_the_gradients(optim: str) -> None:
    scaled, small = setup(optim), setup(optim)
    for step in range(3):
        gradients = gradients_of(step)
        scaled.step(gradients, scale=0.25)
        small.step({name: 0.25 * gradient for name, gradient in gradients.items()})
    assert scaled.everything() == small.everything()


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_weight_decay_takes_only_matrices_and_is_decoupled(optim: str) -> None:
    zero = {name: np.zeros(shape) for name, shape in SPECS.items()}
    decayed = setup(optim, weight_decay=0.5)
    before = decayed.parameters.to_numpy()
    decayed.step(zero, lr=0.1)
    for name, values in decayed.parameters.to_numpy().items():
        factor = 1.0 if len(SPECS[name]) == 1 else 0.95
        np.testing.assert_allclose(values, factor * before[name], rtol=1e-14)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_zero_and_tiny_gradients_give_finite_parameters_in_float32(optim: str) -> None:
    tested = setup(optim, dtype=np.float32)
    for step in range(3):
        gradients = {name: np.zeros(shape) for name, shape in SPECS.items()}
        gradients["h.0.tall"][0, 0] = 1e-18 if step else 0.0
        gradients["h.0.wide"][1] = 1.0
        tested.step(gradients)
    assert all(np.isfinite(values).all() for values in tested.parameters.to_numpy().values())


def test_bias_corrections_count_accepted_steps() -> None:
    tested = setup("adamw", beta1=0.9, beta2=0.99999)
    for step in range(20):
        tested.step(gradients_of(step), accept=step % 2 == 0)
    state = tested.optimizer.state()
    np.testing.assert_allclose(state["correction1"], [1 - 0.9**10], rtol=1e-13)
    np.testing.assert_allclose(state["correction2"], [-np.expm1(10 * np.log1p(-1e-5))], rtol=1e-10)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_loaded_state_continues_bit_for_bit(optim: str) -> None:
    whole, first_half = setup(optim), setup(optim)
    for step in range(3):
        whole.step(gradients_of(step))
        first_half.step(gradients_of(step))
    state = {name: np.array(array) for name, array in first_half.optimizer.state().items()}
    resumed = setup(optim)
    resumed.parameters.load(first_half.parameters.to_numpy())
    resumed.optimizer.load_state(state)
    for step in range(3, 6):
        whole.step(gradients_of(step))
        resumed.step(gradients_of(step))
    assert resumed.everything() == whole.everything()
    assert all(array.size > 0 for array in state.values())


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_state_of_another_form_is_refused_and_changes_nothing(optim: str) -> None:
    tested = setup(optim)
    tested.step(gradients_of(0))
    before = tested.everything()
    state = {name: np.zeros_like(array) for name, array in tested.optimizer.state().items()}
    last = sorted(state)[-1]
    wrong = {
        "lacks": {name: array for name, array in state.items() if name != last},
        "'surplus', which this run does not have": {**state, "surplus": np.zeros(1)},
        r"but this run needs float64 \[": {**state, last: np.zeros((*state[last].shape, 1))},
        r"int64 .* but this run needs": {**state, last: state[last].astype(np.int64)},
    }
    for message, values in wrong.items():
        with pytest.raises(AlphaError, match=message):
            tested.optimizer.load_state(values)
        assert tested.everything() == before


def test_state_is_named_by_parameter_so_that_their_order_does_not_matter() -> None:
    forward, backward = setup("adamw"), setup("adamw", dict(reversed(SPECS.items())))
    forward.step(gradients_of(0))
    backward.parameters.load(forward.parameters.to_numpy())
    backward.optimizer.load_state({name: np.array(array) for name, array in forward.optimizer.state().items()})
    for each in (forward, backward):
        each.step(gradients_of(1))
    assert [spec.name for spec in forward.parameters.specs] != [spec.name for spec in backward.parameters.specs]
    for name, values in forward.parameters.to_numpy().items():
        assert values.tobytes() == backward.parameters.to_numpy()[name].tobytes()


def test_adafactor_keeps_rows_and_columns_only() -> None:
    state = setup("adafactor").optimizer.state()
    shapes = {name: array.shape for name, array in state.items() if name.endswith("h.0.tall")}
    assert shapes == {"row_mean.h.0.tall": (6, 1), "column_mean.h.0.tall": (1, 4)}


def test_every_configured_optimizer_exists_and_no_other() -> None:
    assert sorted(optimizer.OPTIMIZERS) == sorted(OPTIMIZERS)


# --- groups and Muon --------------------------------------------------------------------------------------------------


def test_elementwise_optimizers_need_two_groups() -> None:
    parameters = Parameters(CpuRef(), parameter_specs(resolve_model(ModelConfig(layers=2, dim=16, heads=2)), 11))
    decayed, rest = parameter_groups(parameters)
    matrices = sum(spec.size for spec in parameters.specs if len(spec.shape) == 2)
    assert (decayed.values.shape, rest.values.shape) == ((matrices,), (parameters.size - matrices,))
    assert decayed.weight_decay(0.1) == 0.1
    assert rest.weight_decay(0.1) == 0.0


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_of_the_blocks(tied: bool) -> None:
    config = resolve_model(ModelConfig(layers=2, dim=16, heads=2, block=8, tied=tied))
    parameters = Parameters(CpuRef(), parameter_specs(config, 11))
    state = make_optimizer(parameters, TrainingConfig(optim="muon")).state()
    by_muon = {name.removeprefix("momentum.") for name in state if name.startswith("momentum.")}
    by_adamw = {name.removeprefix("first_moment.") for name in state if name.startswith("first_moment.")}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert by_muon == {f"h.{layer}.{name}.weight" for layer in range(2) for name in layers}
    assert by_muon | by_adamw == {spec.name for spec in parameters.specs}
    assert not by_muon & by_adamw
    assert {"wte.weight", "wpe.weight"} < by_adamw
    assert ("lm_head.weight" in by_adamw) is not tied


@pytest.mark.parametrize("most", [1, orthogonal.STACK])
def test_muon_makes_each_matrix_of_a_parameter_orthogonal_by_itself(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "STACK", most)
    widths = {"h.0.query": 8, "h.0.key": 3, "h.0.value": 5, "h.0.gate": 8}
    apart = setup("muon", {name: (6, width) for name, width in widths.items()}, weight_decay=0.1)
    initial = np.concatenate(list(apart.parameters.to_numpy().values()), axis=1)
    specs = [ParameterSpec("h.0.all", (6, 24), copy_of(initial), tuple(widths.values()))]
    parameters = Parameters(CpuRef(), specs, np.float64)
    parameters.initialize()
    together = Setup(parameters, make_optimizer(parameters, TrainingConfig(optim="muon", weight_decay=0.1)))
    for step in range(3):
        gradients = {name: random((6, width), step) for name, width in widths.items()}
        apart.step(gradients)
        together.step({"h.0.all": np.concatenate(list(gradients.values()), axis=1)})
    expected = np.concatenate(list(apart.parameters.to_numpy().values()), axis=1)
    np.testing.assert_allclose(parameters.to_numpy()["h.0.all"], expected, rtol=1e-12)
    assert {name for name in together.optimizer.state() if "h.0" in name} == {"momentum.h.0.all"}


@pytest.mark.parametrize(("momentum", "forgets"), [(0.0, True), (0.5, False)])
def test_muon_has_the_momentum_that_is_asked_for(momentum: float, forgets: bool) -> None:
    shapes = {"h.0.matrix": (6, 4)}
    first, second = (setup("muon", shapes, muon_momentum=momentum) for _ in range(2))
    for number, each in enumerate((first, second)):
        each.step(gradients_of(number, shapes), lr=0.0)
        each.step(gradients_of(2, shapes))
    assert (first.parameters.to_numpy()["h.0.matrix"] == second.parameters.to_numpy()["h.0.matrix"]).all() == forgets


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_model_names_the_matrices_that_share_a_parameter(activation: str) -> None:
    config = resolve_model(ModelConfig(layers=1, dim=16, heads=4, kv_heads=2, ffn_dim=24, activation=activation))
    specs = parameter_specs(config, 11)
    assert {spec.name: spec.parts for spec in specs if spec.parts} == {
        "h.0.attn.c_attn.weight": (16, 8, 8),
        **({"h.0.mlp.c_fc.weight": (24, 24)} if activation == "swiglu" else {}),
    }
    assert all(sum(spec.parts) == spec.shape[1] for spec in specs if spec.parts)

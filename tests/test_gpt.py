"""The whole model: gradients, causality, decoding with a cache, sizes and names, dropout, checkpointing, threads."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import definitions
import numpy as np
import numpy.typing as npt
import pytest
from backend_case import Composition
from finite_differences import derivative

from alpha import rng
from alpha.activation import ACTIVATIONS, GATED_ACTIVATIONS
from alpha.autograd import Tape
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_primitives import Array, RandomKey
from alpha.config import ARCHITECTURES, ModelConfig, resolve_model
from alpha.errors import AlphaError
from alpha.gpt import GPT, BlockCache, CachedRows, DropoutKeys, parameter_specs

Values = npt.NDArray[Any]

VOCABULARY = 13
SHAPE = {"block": 12, "layers": 2, "dim": 16, "heads": 4, "ffn_dim": 20}


def configuration(arch: str = "gpt2", **options: Any) -> ModelConfig:
    return resolve_model(ModelConfig(**(SHAPE | ARCHITECTURES[arch] | {"arch": arch} | options)))


# Each option on its own, then together with those that it meets in the code.
VARIANTS = {
    "gpt2": configuration(),
    "modern": configuration("modern"),
    **{f"gpt2-{kind}": configuration(activation=kind) for kind in ACTIVATIONS if kind != "gelu"},
    "gpt2-rmsnorm": configuration(norm="rmsnorm"),
    "gpt2-rope": configuration(position="rope"),
    "gpt2-qk-norm": configuration(qk_norm=True),
    "gpt2-groups": configuration(kv_heads=2),
    "gpt2-one-key-head": configuration(kv_heads=1),
    "gpt2-one-head": configuration(heads=1),
    "gpt2-wide-heads": configuration(head_dim=7),
    "modern-narrow-heads": configuration("modern", head_dim=2, kv_heads=2),
    "gpt2-attention-cap": configuration(attention_soft_cap=1.5),
    "gpt2-logit-cap": configuration(logit_soft_cap=2.0),
    "gpt2-norm-eps": configuration(norm_eps=0.3),
    "modern-norm-eps-rope-base": configuration("modern", norm_eps=0.3, rope_base=50.0),
    "gpt2-no-bias": configuration(bias=False),
    "gpt2-untied": configuration(tied=False),
    "modern-all": configuration("modern", kv_heads=2, attention_soft_cap=1.5, activation="swiglu"),
    "modern-bias": configuration("modern", bias=True, norm="layernorm", activation="geglu", kv_heads=1),
    "modern-learned-tied": configuration("modern", position="learned", tied=True, attention_soft_cap=1.5),
}
SMALL_SET = {name: VARIANTS[name] for name in ("gpt2", "modern", "modern-all", "modern-bias")}

every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
main_variants = pytest.mark.parametrize("config", SMALL_SET.values(), ids=SMALL_SET)


def model_of(
    config: ModelConfig,
    dtype: npt.DTypeLike = np.float64,
    backend: Backend | None = None,
    vocabulary: int = VOCABULARY,
    trained: bool = True,
    matrix_dtype: npt.DTypeLike | None = None,
) -> GPT:
    """A model with parameters large enough that everything in it shows in the logits."""
    model = GPT(
        backend or CpuRef(), config, vocabulary, dtype=dtype, trained=lambda spec: trained, matrix_dtype=matrix_dtype
    )
    values = {}
    for spec in model.parameters.specs:
        noise = rng.normal(spec.size, 1, rng.stream_of("test", spec.name)).reshape(spec.shape)
        values[spec.name] = definitions.initial_values(spec) + 0.2 * noise
    model.parameters.load(values)
    return model


def tokens(batch: int, length: int, name: str = "tokens", vocabulary: int = VOCABULARY) -> Values:
    bits = rng.random_bits(batch * length, 2, rng.stream_of(name))
    return (bits % vocabulary).astype(np.int32).reshape(batch, length)


def logits_of(model: GPT, ids: Values) -> Values:
    backend = model.backend
    return backend.to_numpy(model.logits(backend.from_numpy(ids)).data)


def dropout_keys(backend: Backend, step: int = 3, seed: int = 1) -> DropoutKeys:
    return DropoutKeys(seed, backend.from_numpy(np.array([step], np.int32)))


def loss_of(model: GPT, ids: Values, targets: Values, dropout: DropoutKeys | None = None) -> float:
    backend = model.backend
    loss = model.loss(backend.from_numpy(ids), backend.from_numpy(targets), dropout)
    assert loss.shape == ()
    return float(backend.to_numpy(loss.data))


def gradients_of(
    model: GPT, ids: Values, targets: Values, dropout: DropoutKeys | None = None, checkpoint: bool = False
) -> dict[str, Values]:
    """The loss, under the name "loss", and every parameter's gradient; one that got none is left out."""
    backend, parameters = model.backend, model.parameters
    parameters.clear_gradients()
    with Tape() as tape:
        loss = model.loss(backend.from_numpy(ids), backend.from_numpy(targets), dropout, checkpoint)
    tape.backward(loss)
    tensors = {spec.name: parameters[spec.name] for spec in parameters.specs}
    gradients = {name: backend.to_numpy(each.gradient) for name, each in tensors.items() if each.gradient is not None}
    return {"loss": backend.to_numpy(loss.data), **gradients}


def assert_equal_bits(first: dict[str, Values], second: dict[str, Values]) -> None:
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert values.dtype == second[name].dtype
        assert values.tobytes() == second[name].tobytes(), name


# --- results ----------------------------------------------------------------------------------------------------------


@every_variant
def test_logits_are_those_of_the_definition(config: ModelConfig) -> None:
    model, ids = model_of(config), tokens(2, 9)
    wanted = definitions.gpt_logits(config, model.parameters.to_numpy(), ids)
    np.testing.assert_allclose(logits_of(model, ids), wanted, rtol=1e-11, atol=1e-12)


@every_variant
def test_the_loss_is_that_of_the_logits(config: ModelConfig) -> None:
    model, ids, targets = model_of(config), tokens(2, 9), tokens(2, 9, "targets")
    targets[1, 4:] = -1
    logits = logits_of(model, ids)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    assert loss_of(model, ids, targets) == pytest.approx(-np.log(chosen[targets >= 0]).mean(), rel=1e-12)


# --- gradients --------------------------------------------------------------------------------------------------------


def check_gradients(model: GPT, ids: Values, targets: Values, dropout: DropoutKeys | None = None) -> None:
    """Of every parameter: along a random direction, and by one element."""
    gradients = gradients_of(model, ids, targets, dropout)
    values = model.parameters.to_numpy()
    assert set(gradients) == {"loss", *values}
    for name, value in values.items():
        random = rng.normal(value.size, 3, rng.stream_of(name)).reshape(value.shape)
        element = np.zeros(value.shape)
        element.flat[int(np.argmax(np.abs(random)))] = 1.0
        for direction in (random / np.linalg.norm(random), element):

            def moved(t: float, name: str = name, value: Values = value, direction: Values = direction) -> float:
                model.backend.copy_into(model.parameters[name].data, model.backend.from_numpy(value + t * direction))
                return loss_of(model, ids, targets, dropout)

            expected = derivative(moved, 1e-4)
            moved(0.0)
            assert float((gradients[name] * direction).sum()) == pytest.approx(expected, rel=1e-7, abs=1e-9), name


@every_variant
def test_gradients_are_those_of_finite_differences(config: ModelConfig) -> None:
    targets = tokens(2, 5, "targets")
    targets[0, 3] = -1
    check_gradients(model_of(dataclasses.replace(config, layers=1)), tokens(2, 5), targets)


@main_variants
def test_gradients_with_dropout_are_those_of_finite_differences(config: ModelConfig) -> None:
    model = model_of(dataclasses.replace(config, layers=1, dropout=0.3))
    check_gradients(model, tokens(2, 4), tokens(2, 4, "targets"), dropout_keys(model.backend))


@main_variants
def test_the_fused_operations_and_their_compositions_train_alike(config: ModelConfig) -> None:
    config = dataclasses.replace(config, dropout=0.2)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        fused, composed = (
            gradients_of(model_of(config, dtype, backend), tokens(3, 9), tokens(3, 9, "targets"), dropout_keys(backend))
            for backend in (CpuRef(), Composition())
        )
        for name, wanted in composed.items():
            assert np.abs(fused[name] - wanted).max() < tolerance * max(1.0, np.abs(wanted).max()), name


def test_gradients_of_two_batches_add_up() -> None:
    model = model_of(configuration())
    ids, targets = tokens(4, 5), tokens(4, 5, "targets")
    whole = gradients_of(model, ids, targets)
    model.parameters.clear_gradients()
    backend = model.backend
    half = backend.from_numpy(np.array(0.5))
    for part in (slice(0, 2), slice(2, 4)):
        with Tape() as tape:
            loss = model.loss(backend.from_numpy(ids[part]), backend.from_numpy(targets[part]))
        tape.backward(loss, half)
    for spec, gradient in model.parameters.views(model.parameters.gradients):
        np.testing.assert_allclose(backend.to_numpy(gradient), whole[spec.name], rtol=1e-9, atol=1e-12)


def test_targets_that_do_not_count_leave_no_trace() -> None:
    model = model_of(configuration("modern"))
    ids, targets = tokens(1, 6), tokens(1, 6, "targets")
    ignored = targets.copy()
    ignored[:, 4:] = -1
    short = gradients_of(model, ids[:, :4], targets[:, :4])
    for name, values in gradients_of(model, ids, ignored).items():
        np.testing.assert_allclose(values, short[name], rtol=1e-9, atol=1e-12, err_msg=name)


# --- causality --------------------------------------------------------------------------------------------------------


def assert_causal(model: GPT, length: int, positions: tuple[int, ...], training: bool) -> None:
    """The logits up to t keep their bits when every later token changes, and those at t + 1 do not.

    Equal bits, because masked scores become probabilities of exactly 0, which add nothing, and a row of a matrix
    product is computed the same way whatever the other rows hold.
    """

    def logits(ids: Values) -> Values:
        if not training:
            return logits_of(model, ids)
        with Tape():
            return logits_of(model, ids)

    ids = tokens(2, length, vocabulary=model.vocab_size)
    before = logits(ids)
    for t in positions:
        changed = ids.copy()
        changed[:, t + 1 :] = (ids[:, t + 1 :] + 1 + tokens(2, length - t - 1) % 3) % model.vocab_size
        after = logits(changed)
        assert np.array_equal(after[:, : t + 1], before[:, : t + 1]), t
        assert (after[:, t + 1] != before[:, t + 1]).any(axis=-1).all(), t


@every_variant
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_later_tokens_change_no_earlier_logit(config: ModelConfig, training: bool) -> None:
    assert_causal(model_of(config, np.float32), 11, (0, 1, 4, 9), training)


@main_variants
@pytest.mark.parametrize("make_backend", [CpuRef, Composition])
def test_later_tokens_change_no_earlier_logit_of_long_sequences(
    config: ModelConfig, make_backend: type[Backend]
) -> None:
    model = model_of(dataclasses.replace(config, block=150), np.float32, make_backend(), vocabulary=50)
    assert_causal(model, 150, (0, 62, 63, 64, 127, 128, 148), training=True)


@main_variants
def test_a_loss_depends_on_no_later_token(config: ModelConfig) -> None:
    """Only the targets up to t count: then the embeddings of tokens that come later get no gradient at all."""
    model = model_of(dataclasses.replace(config, block=80, tied=False), np.float32, vocabulary=80)
    ids = np.arange(80, dtype=np.int32)[None]
    for t in (0, 5, 63, 64, 78):
        targets = np.full((1, 80), -1, np.int32)
        targets[0, t] = 1
        gradient = gradients_of(model, ids, targets)["wte.weight"]
        assert not gradient[t + 1 :].any()
        assert gradient[: t + 1].any(axis=1).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_dropout_does_not_let_later_tokens_through(arch: str) -> None:
    model = model_of(configuration(arch, dropout=0.3), np.float32)
    backend, ids = model.backend, tokens(2, 9)
    changed = ids.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCABULARY
    before, after = (
        backend.to_numpy(model.hidden(backend.from_numpy(each), dropout=dropout_keys(backend)).data)
        for each in (ids, changed)
    )
    assert np.array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any()


# --- decoding with a cache --------------------------------------------------------------------------------------------


class Decoding:
    """Sequences side by side that grow chunk by chunk; their blocks of 4 tokens lie in no order."""

    def __init__(self, model: GPT, batch: int) -> None:
        self.model, self.batch, self.length = model, batch, 0
        pages = -(-model.config.block // 4)
        self.cache = BlockCache(model.backend, model.config, batch * pages + 1, 4, model.parameters.values.dtype)
        self.tables = 1 + np.arange(batch * pages)[::-1].reshape(pages, batch).T

    def logits(self, ids: Values) -> Values:
        """[B, T, V] for the next ids [B, T]."""
        return self.wanted(ids, None).reshape(*ids.shape, -1)

    def wanted(self, ids: Values, wanted: Values | None) -> Values:
        """[M, V] for these of the rows of the next ids [B, T]; None is all."""
        model, (B, T) = self.model, ids.shape
        positions = np.tile(np.arange(self.length, self.length + T), B)
        sequences = np.repeat(np.arange(B), T)
        slots = 4 * self.tables[sequences, positions // 4] + positions % 4
        places = (
            model.backend.from_numpy(each.astype(np.int32)) for each in (positions, slots, sequences, self.tables)
        )
        wanted_rows = None if wanted is None else model.backend.from_numpy(wanted)
        rows = CachedRows(model.backend, self.cache, *places, wanted_rows)
        hidden = model.hidden_of_rows(model.backend.from_numpy(ids.reshape(-1)), rows)
        self.length += T
        return model.backend.to_numpy(model.logits_of_rows(hidden))


@every_variant
def test_decoding_with_a_cache_equals_the_full_forward_pass(config: ModelConfig) -> None:
    for dtype, chunks in ((np.float64, [1] * 12), (np.float64, [5, 1, 4, 2]), (np.float32, [1] * 12)):
        model, ids = model_of(config, dtype), tokens(3, 12)
        full = logits_of(model, ids)
        tolerance = (1e-5 if dtype == np.float32 else 1e-13) * np.abs(full).max()
        decoding = Decoding(model, 3)
        start = 0
        for chunk in chunks:
            part = decoding.logits(ids[:, start : start + chunk])
            assert part.dtype == dtype
            assert np.abs(part - full[:, start : start + chunk]).max() < tolerance
            start += chunk


@main_variants
def test_decoding_a_long_sequence_in_chunks_equals_the_full_forward_pass(config: ModelConfig) -> None:
    config = dataclasses.replace(config, block=150)
    model, ids = model_of(config), tokens(2, 150)
    full = logits_of(model, ids)
    decoding = Decoding(model, 2)
    starts = (0, 1, 70, 149, 150)
    parts = [decoding.logits(ids[:, start:stop]) for start, stop in itertools.pairwise(starts)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, rtol=1e-10, atol=1e-12)


@every_variant
def test_the_last_layer_computes_wanted_rows_only(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but keys and values, which later rows read."""
    model, ids = model_of(config), tokens(3, 12)
    full = logits_of(model, ids)
    decoding, rows = Decoding(model, 3), []
    linear = model.backend.linear

    def counted(x: Values, *others: object, **options: object) -> object:
        rows.append(int(np.prod(x.shape[:-1])))
        return linear(x, *others, **options)

    monkeypatch.setattr(model.backend, "linear", counted)
    wanted = decoding.wanted(ids[:, :7], np.array([6, 20, 6], np.int32))
    assert rows == 4 * (config.layers - 1) * [21] + [21] + 4 * [3]
    np.testing.assert_allclose(wanted, full[[0, 2, 0], 6], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(decoding.logits(ids[:, 7:]), full[:, 7:], rtol=1e-10, atol=1e-12)


@main_variants
def test_more_positions_than_the_block_are_refused(config: ModelConfig) -> None:
    model = model_of(config)
    with pytest.raises(ValueError, match="13 positions"):
        logits_of(model, tokens(2, 13))


# --- sizes, names and initial values ----------------------------------------------------------------------------------


def count_of(config: ModelConfig, vocabulary: int) -> int:
    """The number of weights, by its formula."""
    C, L, F = config.dim, config.layers, config.ffn_dim
    D = config.head_dim or C // config.heads
    qkv = (config.heads + 2 * config.kv_heads) * D
    inner = 2 * F if config.activation in GATED_ACTIVATIONS else F
    matrices = vocabulary * C * (1 if config.tied else 2) + (config.block * C if config.position == "learned" else 0)
    matrices += L * (C * qkv + config.heads * D * C + C * inner + F * C)
    vectors = (2 * L + 1) * C * (2 if config.norm == "layernorm" and config.bias else 1)
    vectors += L * (qkv + C + inner + C) if config.bias else 0
    vectors += 2 * L * D if config.qk_norm else 0
    return matrices + vectors


@every_variant
def test_the_number_of_weights_is_that_of_the_formula(config: ModelConfig) -> None:
    assert sum(spec.size for spec in parameter_specs(config, VOCABULARY)) == count_of(config, VOCABULARY)


@pytest.mark.parametrize(
    ("layers", "dim", "heads", "count"),
    [
        (12, 768, 12, 124_439_808),
        (24, 1024, 16, 354_823_168),
        (36, 1280, 20, 774_030_080),
        (48, 1600, 25, 1_557_611_200),
    ],
)
def test_gpt2_has_the_published_number_of_weights(layers: int, dim: int, heads: int, count: int) -> None:
    config = resolve_model(ModelConfig(block=1024, layers=layers, dim=dim, heads=heads))
    assert sum(spec.size for spec in parameter_specs(config, 50257)) == count


def test_gpt2_has_the_published_names_and_shapes() -> None:
    config = resolve_model(ModelConfig(block=1024, layers=12, dim=768, heads=12))
    shapes = {spec.name: spec.shape for spec in parameter_specs(config, 50257)}
    expected = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768), "ln_f.weight": (768,), "ln_f.bias": (768,)}
    for layer in range(12):
        for name, shape in {
            "ln_1.weight": (768,), "ln_1.bias": (768,),
            "attn.c_attn.weight": (768, 2304), "attn.c_attn.bias": (2304,),
            "attn.c_proj.weight": (768, 768), "attn.c_proj.bias": (768,),
            "ln_2.weight": (768,), "ln_2.bias": (768,),
            "mlp.c_fc.weight": (768, 3072), "mlp.c_fc.bias": (3072,),
            "mlp.c_proj.weight": (3072, 768), "mlp.c_proj.bias": (768,),
        }.items():  # fmt: skip
            expected[f"h.{layer}.{name}"] = shape
    assert shapes == expected


@every_variant
def test_decay_applies_to_matrices_and_they_stand_first(config: ModelConfig) -> None:
    parameters = GPT(CpuRef(), config, VOCABULARY).parameters
    decays = [spec.decay for spec in parameters.specs]
    assert decays == sorted(decays, reverse=True)
    assert all(spec.decay == (len(spec.shape) == 2) for spec in parameters.specs)
    assert parameters.size == parameters.trained_size == count_of(config, VOCABULARY)


def test_initial_values_have_the_deviations_of_gpt2() -> None:
    config = configuration(layers=8, dim=64, block=64, tied=False, ffn_dim=128)
    for spec in parameter_specs(config, 101, seed=3):
        values = definitions.initial_values(spec)
        assert values.shape == spec.shape
        if not spec.decay:
            assert (values == (1.0 if spec.name.endswith("weight") else 0.0)).all()
            continue
        deviation = 0.02 / math.sqrt(2 * 8) if "c_proj" in spec.name else 0.02
        assert abs(values.std() / deviation - 1) < 4 / math.sqrt(2 * spec.size)
        assert abs(values.mean()) < 4 * deviation / math.sqrt(spec.size)


def test_initial_values_depend_on_the_seed_and_the_name_alone() -> None:
    def initial(config: ModelConfig, seed: int) -> dict[str, Values]:
        specs = parameter_specs(config, VOCABULARY, seed)
        return {spec.name: definitions.initial_values(spec) for spec in specs if spec.decay}

    first, other_seed = initial(configuration(), 1), initial(configuration(), 2)
    assert_equal_bits(first, initial(configuration(qk_norm=True, norm="rmsnorm", bias=False), 1))
    assert all((first[name] != other_seed[name]).all() for name in first)
    values = [values.tobytes() for values in first.values()]
    assert len(set(values)) == len(values)


def test_parameters_drawn_in_parts_have_the_bits_of_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config, vocabulary = configuration(dim=64, tied=False), rng.NORMAL_PART // 64 + 77
    for processors in (1, 3):
        monkeypatch.setattr("alpha.workers.available_cpus", lambda processors=processors: processors)
        model = GPT(CpuRef(), config, vocabulary, seed=7, dtype=np.float32)
        shares: list[float] = []
        model.parameters.initialize(shares.append)
        assert shares == sorted(shares)
        assert len(shares) == len(model.parameters.specs) + 2  # two tables take two parts each
        assert shares[-1] == 1.0
        for name, values in model.parameters.to_numpy().items():
            if values.ndim == 2:
                deviation = 0.02 / math.sqrt(2 * config.layers) if "c_proj" in name else 0.02
                drawn = deviation * rng.normal(values.size, 7, rng.stream_of("parameter", name))
                assert values.tobytes() == drawn.astype(np.float32).tobytes()


@every_variant
def test_the_initial_loss_is_that_of_a_guess(config: ModelConfig) -> None:
    config = dataclasses.replace(config, dim=32, ffn_dim=64)
    model = GPT(CpuRef(), config, 101)
    model.parameters.initialize()
    ids, targets = tokens(8, 12, vocabulary=101), tokens(8, 12, "targets", vocabulary=101)
    assert loss_of(model, ids, targets) == pytest.approx(math.log(101), abs=0.03)


def test_loading_weights_checks_names_and_shapes() -> None:
    model = model_of(configuration())
    values = model.parameters.to_numpy()
    model.parameters.load(values)
    with pytest.raises(AlphaError, match=r"'extra\.weight'"):
        model.parameters.load(values | {"extra.weight": np.zeros(3)})
    with pytest.raises(AlphaError, match=r"'ln_f\.bias'"):
        model.parameters.load({name: each for name, each in values.items() if name != "ln_f.bias"})
    with pytest.raises(AlphaError, match=r"'wpe\.weight'.*\[11, 16\].*\[12, 16\]"):
        model.parameters.load(values | {"wpe.weight": np.zeros((11, 16))})


# --- dropout, checkpointing and threads -------------------------------------------------------------------------------


@main_variants
def test_dropout_is_drawn_by_its_keys(config: ModelConfig) -> None:
    model = model_of(dataclasses.replace(config, dropout=0.2))
    losses = functools.partial(loss_of, model, tokens(2, 9), tokens(2, 9, "targets"))
    keys = functools.partial(dropout_keys, model.backend)
    first = losses(keys(step=3, seed=1))
    assert losses(keys(step=3, seed=1)) == first
    assert len({first, losses(keys(step=4, seed=1)), losses(keys(step=3, seed=2)), losses()}) == 4
    without = model_of(config)
    assert losses() == loss_of(without, tokens(2, 9), tokens(2, 9, "targets"))


@pytest.mark.parametrize("make_backend", [CpuRef, Composition])
def test_every_place_of_dropout_draws_its_own_mask(
    make_backend: type[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend()
    drawn: list[tuple[RandomKey, tuple[int, ...]]] = []
    original = backend.dropout

    def noted(x: Array, probability: float, key: RandomKey) -> Array:
        drawn.append((key, x.shape))
        return original(x, probability, key)

    model = model_of(configuration(dropout=0.2), backend=backend)
    monkeypatch.setattr(backend, "dropout", noted)
    loss_of(model, tokens(2, 5), tokens(2, 5, "targets"), dropout_keys(backend, step=9, seed=4))
    streams = [key.stream for key, _ in drawn]
    assert len(streams) == 1 + 3 * 2  # the embedding; attention and both projections of each layer
    assert len(set(streams)) == len(streams)
    assert all((key.seed, backend.to_numpy(key.step).tolist()) == (4, [9]) for key, _ in drawn)
    assert sorted(math.prod(shape) for _, shape in drawn) == [2 * 5 * 16] * 5 + [2 * 4 * 5 * 5] * 2


@every_variant
def test_checkpointed_gradients_have_the_same_bits(config: ModelConfig) -> None:
    model = model_of(dataclasses.replace(config, dropout=0.2), np.float32)
    arguments = model, tokens(2, 9), tokens(2, 9, "targets"), dropout_keys(model.backend)
    plain = gradients_of(*arguments)
    assert_equal_bits(plain, gradients_of(*arguments, checkpoint=True))
    assert len(plain) == 1 + len(model.parameters.specs)


def test_checkpointing_runs_every_block_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(configuration())
    calls = []
    original = model.backend.attention

    def noted(*arguments: Any) -> tuple[Array, Any]:
        calls.append(arguments[6])
        return original(*arguments)

    monkeypatch.setattr(model.backend, "attention", noted)
    gradients_of(model, tokens(2, 5), tokens(2, 5, "targets"))
    assert calls == [True, True]
    calls.clear()
    gradients_of(model, tokens(2, 5), tokens(2, 5, "targets"), checkpoint=True)
    assert calls == [True] * 4


@main_variants
def test_the_number_of_threads_changes_no_bit(config: ModelConfig) -> None:
    config = dataclasses.replace(config, block=72, dim=64, ffn_dim=160, dropout=0.1)
    ids, targets = (tokens(9, 72, name, 307) for name in ("tokens", "targets"))
    one, two = (
        gradients_of(model_of(config, np.float32, backend, 307), ids, targets, dropout_keys(backend))
        for backend in (CpuRef(threads=1), CpuRef(threads=2))
    )
    assert_equal_bits(one, two)


@main_variants
def test_evaluation_and_training_compute_the_same_loss_to_rounding(config: ModelConfig) -> None:
    model, ids, targets = model_of(config, np.float32), tokens(3, 9), tokens(3, 9, "targets")
    assert float(gradients_of(model, ids, targets)["loss"]) == pytest.approx(loss_of(model, ids, targets), rel=1e-6)

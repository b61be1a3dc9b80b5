"""The model: one definition that training, evaluation and inference all run.

GPT-2 (Radford et al. 2019) with options; parameter names and shapes are those of GPT-2's published weights, so linear
weights are stored [inputs, outputs]. Knows token ids, not text; knows nothing about optimizers or files.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alpha import autograd, ops, rng
from alpha.activation import GATED_ACTIVATIONS
from alpha.autograd import Tensor
from alpha.backend import Backend, Heads
from alpha.backend_primitives import Array, RandomKey
from alpha.config import ModelConfig
from alpha.lora import A, B, Lora, adapter_specs
from alpha.parameters import Parameters, ParameterSpec

INITIAL_DEVIATION = 0.02


class BlockCache:
    """Keys and values in blocks that sequences share out among them: for every layer [blocks, tokens, kvHeads, D]
    each."""

    def __init__(
        self, backend: Backend, config: ModelConfig, blocks: int, tokens: int, dtype: npt.DTypeLike = np.float32
    ) -> None:
        shape = (blocks, tokens, config.kv_heads, config.head_width)
        self.keys = [backend.zeros(shape, dtype) for _ in range(config.layers)]
        self.values = [backend.zeros(shape, dtype) for _ in range(config.layers)]


@dataclass(frozen=True)
class CachedRows:
    """N tokens of any sequences, and where keys and values are; integer arrays, so that a step can be recorded once.

    positions [N]: where each stands in its sequence; at most `block` - 1. slots [N]: where its key and value are to go,
    block * tokens of a block + place in the block. sequences [N]: its sequence's row in tables [S, P], which say in
    which block the keys and values of positions p * tokens of a block and on are. What a row sees must be there, or be
    put there by another row. wanted [M]: the rows of which more than keys and values is computed; None stands for all.
    """

    backend: Backend
    cache: BlockCache
    positions: Array
    slots: Array
    sequences: Array
    tables: Array
    wanted: Array | None = None

    def kept(self, x: Array) -> Array:
        """Of x [N, ...], the rows that are wanted."""
        if self.wanted is None:
            return x
        rows = self.backend.gather_rows(self.backend.reshape(x, (x.shape[0], math.prod(x.shape[1:]))), self.wanted)
        return self.backend.reshape(rows, (rows.shape[0], *x.shape[1:]))

    def attend(self, layer: int, query: Array, key: Array, value: Array, soft_cap: float) -> Array:
        """Attention of the wanted rows of query [N, H, D] to all that each sees, after key and value [N, G, D] are put
        in their slots."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        backend = self.backend
        for store, rows in ((keys, key), (values, value)):
            slots = store.shape[0] * store.shape[1]
            backend.put_rows(backend.reshape(store, (slots, *store.shape[2:])), self.slots, rows)
        query, sequences, positions = map(self.kept, (query, self.sequences, self.positions))
        return backend.cached_attention(query, keys, values, sequences, positions, self.tables, soft_cap)


@dataclass(frozen=True)
class DropoutKeys:
    """Makes dropout draw anew in each micro-step: `step` is an integer array of shape [1]."""

    seed: int
    step: Array

    def key(self, *place: str | int) -> RandomKey:
        return RandomKey(self.seed, rng.stream_of("dropout", *place), self.step)


class GPT:
    """A GPT with its parameters on a backend. `config` is resolved (`config.resolve_model`).

    `trained` says of each parameter whether it is trained; one that is not takes no memory but its own, and if it is a
    matrix is stored as `matrix_dtype` where that is given.
    """

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        vocab_size: int,
        seed: int = 0,
        dtype: npt.DTypeLike = np.float32,
        trained: Callable[[ParameterSpec], bool] = lambda spec: True,
        matrix_dtype: npt.DTypeLike | None = None,
    ) -> None:
        self.backend = backend
        self.config = config
        self.vocab_size = vocab_size
        specs = parameter_specs(config, vocab_size, seed)
        specs = [replace(spec, trained=trained(spec)) for spec in specs]
        self.parameters = Parameters(backend, specs, dtype, matrix_dtype=matrix_dtype)
        self.lora: Lora | None = None
        self.base: GPT | None = None
        self._rotary: tuple[Array, Array] | None = None
        if config.position == "rope":
            cosine, sine = rotary_tables(config.block, config.head_width, config.rope_base)
            self._rotary = (backend.from_numpy(cosine.astype(dtype)), backend.from_numpy(sine.astype(dtype)))

    def with_own_gradients(self) -> "GPT":
        """The same model, parameters shared, which collects its gradients in another array."""
        twin = copy.copy(self)
        twin.parameters = self.parameters.with_own_gradients()
        return twin

    def adapted(self, lora: Lora, seed: int = 0, trained: bool = True) -> "GPT":
        """This model, which must not be trained, with an adapter of its own: `parameters` are the adapter's alone."""
        twin = copy.copy(self)
        twin.lora, twin.base = lora, self
        specs = [replace(spec, trained=trained) for spec in adapter_specs(self.parameters.specs, lora, seed)]
        twin.parameters = Parameters(self.backend, specs, self.parameters.values.dtype, base=self.parameters)
        return twin

    @property
    def cache_dtype(self) -> npt.DTypeLike:
        """What keys and values are stored as: what layers write for each other, so that they lose nothing."""
        return self.backend.activation_dtype or self.parameters.values.dtype

    @property
    def has_dropout(self) -> bool:
        return bool(self.config.dropout or (self.lora and self.lora.dropout))

    def loss(
        self,
        ids: Array,
        targets: Array,
        dropout: DropoutKeys | None = None,
        checkpoint: bool = False,
        begins: Array | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats, shape []; ids and targets are integers [B, T], negative targets do not count.

        With `checkpoint`, each block keeps only its input and is computed again in the backward pass. `begins` as for
        `hidden`.
        """
        rows = ids.shape[0] * ids.shape[1]
        hidden = ops.reshape(self.hidden(ids, dropout, checkpoint, begins), (rows, self.config.dim))
        targets_of_rows = self.backend.reshape(targets, (rows,))
        return ops.cross_entropy(hidden, self._head(), targets_of_rows, self.config.logit_soft_cap)

    def losses(self, ids: Array, targets: Array, begins: Array | None = None) -> Array:
        """The loss of each target [B, T], from which nothing is learned: in nats, and 0 where it is negative."""
        backend, rows = self.backend, math.prod(targets.shape)
        hidden = backend.reshape(self.hidden(ids, begins=begins).data, (rows, self.config.dim))
        targets_of_rows = backend.reshape(targets, (rows,))
        losses = backend.row_losses(hidden, self._head().data, targets_of_rows, self.config.logit_soft_cap)
        return backend.reshape(losses, targets.shape)

    def logits(self, ids: Array) -> Tensor:
        """Logits [B, T, V] for integer ids [B, T]."""
        logits = ops.matmul(self.hidden(ids), ops.transpose(self._head(), (1, 0)))
        return ops.soft_cap(logits, self.config.logit_soft_cap)

    def hidden(
        self,
        ids: Array,
        dropout: DropoutKeys | None = None,
        checkpoint: bool = False,
        begins: Array | None = None,
    ) -> Tensor:
        """The normalized last hidden state [B, T, C].

        Documents that share a sequence know nothing of each other when `begins`, integers [B, T], says of each token
        where in the sequence its document begins: attention sees nothing before, and positions count from there.

        Raises ValueError when there are more positions than `config.block`.
        """
        config, weights = self.config, self.parameters
        count = ids.shape[1]
        if count > config.block:
            raise ValueError(f"{count} positions are more than the context of {config.block} holds")
        backend, positions = self.backend, None
        if begins is not None:
            positions = backend.subtract(backend.from_numpy(np.arange(count, dtype=np.int32)), begins)
        added = None
        if config.position == "learned":
            table = weights["wpe.weight"]
            rows = ops.narrow(table, 0, 0, count) if positions is None else ops.embedding(table, positions)
            added = self._computed(rows)
        x = self._computed(ops.embedding(weights["wte.weight"], ids))
        x = x if added is None else ops.add(x, added)
        x = self._drop(x, dropout, "embedding")
        angles = self._rotary and tuple(
            backend.narrow(table, 0, 0, count) if positions is None else backend.gather_rows(table, positions)
            for table in self._rotary
        )
        for layer in range(config.layers):
            block = self._block(layer, angles, None, dropout, begins)
            x = autograd.checkpoint(block, x) if checkpoint else block(x)
        return self._norm(x, "ln_f")

    def hidden_of_rows(self, ids: Array, rows: CachedRows) -> Array:
        """The last hidden state [M, C], before its norm, of the wanted ones of ids [N] whose keys and values, and those
        before, are in a cache."""
        backend, config = self.backend, self.config
        # Positions come first: they need not wait for ids that are still being drawn.
        places = None
        if config.position == "learned":
            places = self._computed(ops.embedding(self.parameters["wpe.weight"], rows.positions)).data
        x = self._computed(ops.embedding(self.parameters["wte.weight"], ids)).data
        if places is not None:
            x = backend.add(places, x)
        angles = self._rotary and tuple(backend.gather_rows(table, rows.positions) for table in self._rotary)
        hidden = Tensor(backend, backend.reshape(x, (1, *x.shape)))
        all_rows = replace(rows, wanted=None)
        for layer in range(config.layers):
            hidden = self._block(layer, angles, rows if layer == config.layers - 1 else all_rows)(hidden)
        return backend.reshape(hidden.data, hidden.shape[1:])

    def _computed(self, rows: Tensor) -> Tensor:
        """Rows of a matrix in the type that is computed with, from that in which it is stored if it is not trained."""
        dtype = self.parameters.values.dtype
        return rows if rows.dtype == dtype else Tensor(self.backend, self.backend.cast(rows.data, dtype))

    def logits_of_rows(self, hidden: Array) -> Array:
        """Logits [N, V] of rows of `hidden_of_rows`."""
        backend = self.backend
        hidden = self._norm(Tensor(backend, hidden), "ln_f").data
        logits, _ = backend.linear(hidden, backend.transpose(self._head().data, (1, 0)))
        return ops.soft_cap(Tensor(backend, logits), self.config.logit_soft_cap).data

    def _block(
        self,
        layer: int,
        angles: tuple[Array, ...] | None,
        rows: CachedRows | None,
        dropout: DropoutKeys | None = None,
        begins: Array | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """Transformer block `layer` as a function of its input: x + attention(norm(x)), then x + mlp(norm(x))."""
        prefix = f"h.{layer}."

        def block(x: Tensor) -> Tensor:
            attended = self._attention(self._norm(x, prefix + "ln_1"), layer, angles, rows, dropout, begins)
            if rows is not None and rows.wanted is not None:
                kept = rows.kept(self.backend.reshape(x.data, x.shape[1:]))
                x = Tensor(self.backend, self.backend.reshape(kept, (1, *kept.shape)))
            x = self._project(attended, prefix + "attn.c_proj", x, dropout)
            normed = self._norm(x, prefix + "ln_2")
            hidden = self._linear(normed, prefix + "mlp.c_fc", dropout, self.config.activation)
            return self._project(hidden, prefix + "mlp.c_proj", x, dropout)

        return block

    def _attention(
        self,
        x: Tensor,
        layer: int,
        angles: tuple[Array, ...] | None,
        rows: CachedRows | None,
        dropout: DropoutKeys | None,
        begins: Array | None,
    ) -> Tensor:
        config, prefix = self.config, f"h.{layer}.attn."
        B, T, _ = x.shape
        H, G, D = config.heads, config.kv_heads, config.head_width
        qkv = ops.reshape(self._linear(x, prefix + "c_attn", dropout), (B, T, H + 2 * G, D))
        norms = None
        if config.qk_norm:
            norms = self.parameters[prefix + "q_norm.weight"], self.parameters[prefix + "k_norm.weight"]
        heads = Heads(H, G, epsilon=config.norm_eps, angles=angles)
        if rows is not None:
            heads = replace(heads, norms=norms and (norms[0].data, norms[1].data))
            operands = self.backend.split_heads(qkv.data, heads)
            q, k, v = (self.backend.reshape(each, each.shape[1:]) for each in operands)
            attended = Tensor(self.backend, rows.attend(layer, q, k, v, config.attention_soft_cap))
            return ops.reshape(attended, (B, attended.shape[0], H * D))
        random = dropout.key("attention", layer) if dropout else None
        attended = ops.self_attention(qkv, heads, norms, config.attention_soft_cap, config.dropout, random, begins)
        return ops.reshape(attended, (B, T, H * D))

    def _linear(
        self,
        x: Tensor,
        name: str,
        dropout: DropoutKeys | None,
        activation: str = "",
        residual: Tensor | None = None,
    ) -> Tensor:
        """activation(x W + b + the adapter's part) + residual; the adapter's part is scale * dropout(x) A B."""
        weight = self.parameters[name + ".weight"]
        bias = self.parameters[name + ".bias"] if self.config.bias else None
        lora = self.lora
        if lora is None or name + A not in self.parameters:
            return ops.linear(x, weight, bias, activation, residual)
        down, up = self.parameters[name + A], self.parameters[name + B]
        dropped = ops.dropout(x, lora.dropout, dropout.key(name + A)) if dropout else x
        if dropped is x and autograd.recording(down, up):
            return ops.adapted_linear(x, weight, down, up, lora.scale, bias, activation, residual)
        narrow = ops.multiply(ops.linear(dropped, down), lora.scale)
        added = ops.linear(narrow, up, residual=residual)
        y = ops.linear(x, weight, bias, residual=added)
        return ops.activation(y, activation) if activation else y  # no layer has an activation and a residual

    def _project(self, x: Tensor, name: str, residual: Tensor, dropout: DropoutKeys | None) -> Tensor:
        """A linear layer back into the residual stream, with dropout before the sum."""
        if not (dropout and self.config.dropout):
            return self._linear(x, name, dropout, residual=residual)
        return ops.add(self._drop(self._linear(x, name, dropout), dropout, name), residual)

    def _drop(self, x: Tensor, dropout: DropoutKeys | None, place: str) -> Tensor:
        return ops.dropout(x, self.config.dropout, dropout.key(place)) if dropout else x

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.parameters[name + ".weight"]
        if self.config.norm == "rmsnorm":
            return ops.rms_norm(x, weight, self.config.norm_eps)
        bias = self.parameters[name + ".bias"] if self.config.bias else None
        return ops.layer_norm(x, weight, bias, self.config.norm_eps)

    def _head(self) -> Tensor:
        return self.parameters["wte.weight" if self.config.tied else "lm_head.weight"]


def parameter_specs(config: ModelConfig, vocab_size: int, seed: int = 0) -> list[ParameterSpec]:
    """Every parameter of the model, in the order of the forward pass.

    Initial values are GPT-2's: normal with deviation 0.02, divided by sqrt(2 L) for the projections that end in the
    residual stream; biases 0, norm weights 1.
    """
    C, D, F = config.dim, config.head_width, config.ffn_dim
    specs: list[ParameterSpec] = []

    def matrix(
        name: str, shape: Sequence[int], deviation: float = INITIAL_DEVIATION, parts: tuple[int, ...] = ()
    ) -> None:
        stream = rng.stream_of("parameter", name)

        def draw(out: npt.NDArray[np.floating], start: int) -> None:
            rng.normal_into(out, seed, stream, 0, start, deviation)

        specs.append(ParameterSpec(name, tuple(shape), draw, parts))

    def linear(name: str, inputs: int, *outputs: int, deviation: float = INITIAL_DEVIATION) -> None:
        """Several `outputs` are the widths of several layers with one input."""
        width = sum(outputs)
        matrix(name + ".weight", (inputs, width), deviation, outputs if len(outputs) > 1 else ())
        if config.bias:
            specs.append(ParameterSpec(name + ".bias", (width,), _filled(0.0)))

    def norm(name: str) -> None:
        specs.append(ParameterSpec(name + ".weight", (C,), _filled(1.0)))
        if config.norm == "layernorm" and config.bias:
            specs.append(ParameterSpec(name + ".bias", (C,), _filled(0.0)))

    residual_deviation = INITIAL_DEVIATION / math.sqrt(2 * config.layers)
    matrix("wte.weight", (vocab_size, C))
    if config.position == "learned":
        matrix("wpe.weight", (config.block, C))
    for layer in range(config.layers):
        prefix = f"h.{layer}."
        norm(prefix + "ln_1")
        linear(prefix + "attn.c_attn", C, config.heads * D, config.kv_heads * D, config.kv_heads * D)
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                specs.append(ParameterSpec(f"{prefix}attn.{name}.weight", (D,), _filled(1.0)))
        linear(prefix + "attn.c_proj", config.heads * D, C, deviation=residual_deviation)
        norm(prefix + "ln_2")
        linear(prefix + "mlp.c_fc", C, *((F, F) if config.activation in GATED_ACTIVATIONS else (F,)))
        linear(prefix + "mlp.c_proj", F, C, deviation=residual_deviation)
    norm("ln_f")
    if not config.tied:
        matrix("lm_head.weight", (vocab_size, C))
    return specs


def _filled(value: float) -> Callable[[npt.NDArray[np.floating], int], None]:
    """What writes `value` for every element."""
    return lambda out, start: out.fill(value)


def rotary_tables(positions: int, width: int, base: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """cos and sin of position * base^(-2 i / D): [positions, D/2] each (RoFormer, equation 15)."""
    frequencies = base ** (-np.arange(0, width, 2) / width)
    angles = np.outer(np.arange(positions), frequencies)
    return np.cos(angles), np.sin(angles)

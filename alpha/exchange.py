"""What models are called elsewhere: one table of architectures, which export and import both read.

An entry of ARCHITECTURES says which options of Alpha's an architecture is the same as, what it calls them in
config.json and what it calls the weights. Adding an architecture is adding an entry.

Source of the names, defaults and formulas: the configuration and modeling files of the `transformers` package 5.24.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from alpha.config import ModelConfig, resolve_model
from alpha.errors import AlphaError, UsageError
from alpha.option import camel_case, flag_of, from_mapping
from alpha.tokenizer import shown

CUSTOM_PREFIX = "alpha_"
"""Begins the model type of an exported model that needs a modeling file of its own, for its soft caps."""

_UNSCALED = ("default", None)


@dataclass(frozen=True)
class Key:
    """A key of config.json that says an option. `absent` is what its absence means; None: it must be there."""

    name: str
    absent: Any = None


@dataclass(frozen=True)
class Names:
    """What a format calls the weights of an architecture.

    `modules` maps each module of Alpha's, without the number of its block, to a name with {} for that number, or to
    several where what is side by side in Alpha's matrix is apart there. `transposed`: matrices of linear layers are
    [outputs, inputs]. `interleaved`: a rotated pair of a head is (2i, 2i + 1), not (i, i + D/2), so the rows of
    queries and keys stand in another order.
    """

    modules: Mapping[str, tuple[str, ...]]
    transposed: bool = True
    interleaved: bool = False
    buffers: re.Pattern[str] = re.compile(r"(?!)")
    """Names of tensors that are computed, not learned, and may be left over."""


@dataclass(frozen=True)
class Architecture:
    """One architecture: `options` are the values that each option may have; what is not named may have any.

    `activations` are the names of Alpha's activations there. `constants` are the values that keys of config.json must
    have, or be absent with; what is written has them. `widened`: it always has biases, and as many key and value heads
    as heads; a model without gets zeros, and repeated heads.
    """

    name: str
    class_name: str
    options: Mapping[str, tuple[Any, ...]]
    activations: Mapping[str, str]
    keys: Mapping[str, Key]
    weights: Names
    prefix: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    bias_keys: tuple[str, ...] = ()
    default_rope: Any = None
    """The scaling that it has when its config.json says nothing of it."""
    widened: bool = False
    gguf: Names = field(kw_only=True)
    gguf_options: Mapping[str, tuple[Any, ...]] = field(kw_only=True)
    """What llama.cpp computes of it, where that is less."""
    gguf_constants: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of its GGUF files, and what they must be; a list stands for one with that number for each block."""
    gguf_untied: bool = False
    """llama.cpp wants an output head even where it is the embedding."""


_UNGATED = {"gelu": "gelu_pytorch_tanh", "gelu_exact": "gelu", "relu": "relu", "relu2": "relu2", "silu": "silu"}
_GATED = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
_SAME_ACTIVATION = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "swish": "silu"}
"""Other names of one function."""

_LLAMA_KEYS = {
    "block": Key("max_position_embeddings", 2048),
    "layers": Key("num_hidden_layers"),
    "dim": Key("hidden_size"),
    "heads": Key("num_attention_heads"),
    "kv_heads": Key("num_key_value_heads", 0),
    "head_dim": Key("head_dim", 0),
    "ffn_dim": Key("intermediate_size"),
    "activation": Key("hidden_act", "silu"),
    "norm_eps": Key("rms_norm_eps", 1e-6),
    "tied": Key("tie_word_embeddings", False),
}
_LLAMA_MODULES = {
    "wte": ("model.embed_tokens",),
    "ln_1": ("model.layers.{}.input_layernorm",),
    "attn.c_attn": tuple(f"model.layers.{{}}.self_attn.{each}_proj" for each in "qkv"),
    "attn.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "attn.k_norm": ("model.layers.{}.self_attn.k_norm",),
    "attn.c_proj": ("model.layers.{}.self_attn.o_proj",),
    "ln_2": ("model.layers.{}.post_attention_layernorm",),
    "mlp.c_fc": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "mlp.c_proj": ("model.layers.{}.mlp.down_proj",),
    "ln_f": ("model.norm",),
    "lm_head": ("lm_head",),
}
_ROTARY_BUFFERS = re.compile(r"(model\.)?(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")
_UNGATED_MLP = {"mlp.c_fc": ("model.layers.{}.mlp.up_proj",)}

_GGUF_MODULES = {
    "wte": ("token_embd",),
    "wpe": ("position_embd",),
    "ln_1": ("blk.{}.attn_norm",),
    "attn.c_attn": ("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"),
    "attn.q_norm": ("blk.{}.attn_q_norm",),
    "attn.k_norm": ("blk.{}.attn_k_norm",),
    "attn.c_proj": ("blk.{}.attn_output",),
    "ln_2": ("blk.{}.ffn_norm",),
    "mlp.c_fc": ("blk.{}.ffn_gate", "blk.{}.ffn_up"),
    "mlp.c_proj": ("blk.{}.ffn_down",),
    "ln_f": ("output_norm",),
    "lm_head": ("output",),
}
_UNGATED_GGUF = {**_GGUF_MODULES, "mlp.c_fc": ("blk.{}.ffn_up",)}
_RELU2_AS_XIELU = {
    "xielu.alpha_n": [-100.0],
    "xielu.alpha_p": [math.log(math.e - 1)],
    "xielu.beta": [0.0],
    "xielu.eps": [-1e-6],
}
"""xIELU is softplus(alpha_p) x^2 + beta x above 0, and a multiple of softplus(alpha_n) plus beta x below."""

ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture(
            "gpt2",
            "GPT2LMHeadModel",
            options={"norm": ("layernorm",), "position": ("learned",), "qk_norm": (False,), "head_dim": (0,)},
            activations={**_UNGATED, "gelu": "gelu_new"},
            keys={
                "block": Key("n_positions", 1024),
                "layers": Key("n_layer"),
                "dim": Key("n_embd"),
                "heads": Key("n_head"),
                "ffn_dim": Key("n_inner", 0),
                "activation": Key("activation_function", "gelu_new"),
                "norm_eps": Key("layer_norm_epsilon", 1e-5),
                "tied": Key("tie_word_embeddings", True),
            },
            weights=Names(
                {
                    **{each: (f"transformer.{each}",) for each in ("wte", "wpe", "ln_f")},
                    **{
                        each: (f"transformer.h.{{}}.{each}",)
                        for each in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
                    },
                    "lm_head": ("lm_head",),
                },
                transposed=False,
                buffers=re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.(masked_)?bias"),
            ),
            prefix="transformer.",
            constants={
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "reorder_and_upcast_attn": False,
                "add_cross_attention": False,
            },
            widened=True,
            gguf=Names({**_UNGATED_GGUF, "attn.c_attn": ("blk.{}.attn_qkv",)}),
            gguf_options={"activation": ("gelu",)},
        ),
        Architecture(
            "llama",
            "LlamaForCausalLM",
            options={"norm": ("rmsnorm",), "position": ("rope",), "qk_norm": (False,)},
            activations=_GATED,
            keys=_LLAMA_KEYS,
            weights=Names(_LLAMA_MODULES, buffers=_ROTARY_BUFFERS),
            prefix="model.",
            constants={"pretraining_tp": 1},
            bias_keys=("attention_bias", "mlp_bias"),
            gguf=Names(_GGUF_MODULES, interleaved=True),
            gguf_options={"activation": ("swiglu",)},
        ),
        Architecture(
            "qwen3",
            "Qwen3ForCausalLM",
            options={"norm": ("rmsnorm",), "position": ("rope",), "qk_norm": (True,), "bias": (False,)},
            activations=_GATED,
            keys={**_LLAMA_KEYS, "block": Key("max_position_embeddings", 32768), "head_dim": Key("head_dim", 128)},
            weights=Names(_LLAMA_MODULES, buffers=_ROTARY_BUFFERS),
            prefix="model.",
            constants={"use_sliding_window": False, "attention_bias": False},
            gguf=Names(_GGUF_MODULES),
            gguf_options={"activation": ("swiglu",)},
        ),
        Architecture(
            "arcee",
            "ArceeForCausalLM",
            options={"norm": ("rmsnorm",), "position": ("rope",), "qk_norm": (False,)},
            activations=_UNGATED,
            keys={
                **_LLAMA_KEYS,
                "block": Key("max_position_embeddings", 4096),
                "activation": Key("hidden_act", "relu2"),
                "norm_eps": Key("rms_norm_eps", 1e-5),
            },
            weights=Names({**_LLAMA_MODULES, **_UNGATED_MLP}, buffers=_ROTARY_BUFFERS),
            prefix="model.",
            bias_keys=("attention_bias", "mlp_bias"),
            gguf=Names(_UNGATED_GGUF, interleaved=True),
            gguf_options={"activation": ("relu2",), "bias": (False,)},
        ),
        Architecture(
            "apertus",
            "ApertusForCausalLM",
            options={"norm": ("rmsnorm",), "position": ("rope",), "qk_norm": (True,), "bias": (False,)},
            activations=_UNGATED,
            keys={
                **_LLAMA_KEYS,
                "block": Key("max_position_embeddings", 65536),
                "activation": Key("hidden_act", "xielu"),
                "norm_eps": Key("rms_norm_eps", 1e-5),
            },
            weights=Names(
                {
                    **_LLAMA_MODULES,
                    **_UNGATED_MLP,
                    "ln_1": ("model.layers.{}.attention_layernorm",),
                    "ln_2": ("model.layers.{}.feedforward_layernorm",),
                },
                buffers=_ROTARY_BUFFERS,
            ),
            prefix="model.",
            constants={"attention_bias": False},
            default_rope={"rope_type": "llama3", "rope_theta": 12e6},
            gguf=Names(_UNGATED_GGUF),
            gguf_options={"activation": ("relu2",)},
            gguf_constants=_RELU2_AS_XIELU,
            gguf_untied=True,
        ),
    )
}
"""By the model type in config.json."""

_CAPS = {"attention_soft_cap": "attn_logit_softcapping", "logit_soft_cap": "final_logit_softcapping"}


# --- from options to config.json --------------------------------------------------------------------------------------


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture that computes the same as a resolved configuration, soft caps aside.

    Raises AlphaError that names the options in the way of the nearest ones.
    """
    in_the_way = {name: _contradictions(each, config) for name, each in ARCHITECTURES.items()}
    fewest = min(map(len, in_the_way.values()))
    nearest = {name: flags for name, flags in in_the_way.items() if len(flags) == fewest}
    if fewest:
        reasons = "; ".join(f"{name} cannot have {' '.join(flags)}" for name, flags in nearest.items())
        raise AlphaError(f"No architecture that others run says the same as this model: {reasons}.")
    return ARCHITECTURES[next(iter(nearest))]


def _contradictions(architecture: Architecture, config: ModelConfig) -> list[str]:
    allowed = {**architecture.options, "activation": tuple(architecture.activations)}
    return [
        flag_of(config, name)
        for name, values in allowed.items()
        if getattr(config, name) not in values
    ]  # fmt: skip


def soft_caps(config: ModelConfig) -> dict[str, float]:
    """The soft caps that are on, by the option's field; no public architecture of the table has them."""
    return {name: getattr(config, name) for name in _CAPS if getattr(config, name)}


def to_config(architecture: Architecture, config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """What config.json says of a model: the keys that the computation depends on."""
    config = widened(architecture, config)
    caps = soft_caps(config)
    values: dict[str, Any] = {
        "architectures": ["AlphaForCausalLM" if caps else architecture.class_name],
        "model_type": (CUSTOM_PREFIX if caps else "") + architecture.name,
        "vocab_size": vocab_size,
    }
    for name, key in architecture.keys.items():
        values[key.name] = getattr(config, name)
    values[architecture.keys["activation"].name] = architecture.activations[config.activation]
    values |= dict.fromkeys(architecture.bias_keys, config.bias)
    if config.position == "rope":
        values["head_dim"] = config.head_width
        values["rope_theta"] = config.rope_base
        values["rope_scaling"] = None
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_base}
    else:
        values |= dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout)
    return {**values, **architecture.constants, **{_CAPS[name]: value for name, value in caps.items()}}


def widened(architecture: Architecture, config: ModelConfig) -> ModelConfig:
    """The configuration with what the architecture always has: biases, a key and value head for each head."""
    return replace(config, bias=True, kv_heads=config.heads) if architecture.widened else config


# --- from config.json to options --------------------------------------------------------------------------------------


def from_config(values: Any, source: str) -> tuple[Architecture, ModelConfig, int]:
    """The architecture, the options and the vocabulary size that a config.json says.

    Raises AlphaError that names `source` and the key that cannot be said in Alpha's options.
    """
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise AlphaError(f"{source} is not the configuration of a model: it has no model_type.")
    model_type = values["model_type"]
    has_caps = model_type.startswith(CUSTOM_PREFIX)
    architecture = ARCHITECTURES.get(model_type.removeprefix(CUSTOM_PREFIX))
    if architecture is None:
        raise AlphaError(
            f"{source} describes a model of type {shown(model_type)}; Alpha imports {', '.join(ARCHITECTURES)}."
        )
    if values.get("quantization_config") is not None:
        raise AlphaError(f"{source} has a quantization_config; import the weights from before they were quantized.")
    for key, value in architecture.constants.items():
        if values.get(key, value) != value:
            raise _cannot_say(source, key, values[key])
    layer_types = values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or set(map(str, layer_types)) - {"full_attention"}
    ):
        raise _cannot_say(source, "layer_types", layer_types)
    options = {name: _value(values, key, source) for name, key in architecture.keys.items()}
    options["activation"] = _activation(architecture, options["activation"], source)
    options |= {name: allowed[0] for name, allowed in architecture.options.items()}
    options["bias"] = architecture.widened or _bias(architecture, values, source)
    if "rope" in architecture.options["position"]:
        options["rope_base"] = _rope_base(architecture, values, source)
    else:
        options["dropout"] = _dropout(values, source)
    if has_caps:
        options |= {name: values.get(key, 0.0) for name, key in _CAPS.items()}
    options["arch"] = "gpt2" if architecture.name == "gpt2" else "modern"
    try:
        written = {camel_case(name): value for name, value in options.items()}
        config = resolve_model(from_mapping(ModelConfig, written, source))
    except UsageError as error:
        raise AlphaError(f"{source} cannot be used: {error}") from error
    vocab_size = values.get("vocab_size")
    if type(vocab_size) is not int or not 0 < vocab_size < 1 << 24:
        raise _cannot_say(source, "vocab_size", vocab_size)
    return architecture, config, vocab_size


def _value(values: Mapping[str, Any], key: Key, source: str) -> Any:
    value = values.get(key.name)
    value = key.absent if value is None else value
    if value is None:
        raise AlphaError(f"{source} lacks {key.name}.")
    return value


def _activation(architecture: Architecture, name: Any, source: str) -> str:
    for own, theirs in architecture.activations.items():
        if isinstance(name, str) and _SAME_ACTIVATION.get(name, name) == _SAME_ACTIVATION.get(theirs, theirs):
            return own
    raise _cannot_say(source, architecture.keys["activation"].name, name)


def _bias(architecture: Architecture, values: Mapping[str, Any], source: str) -> bool:
    given = [values.get(key, False) for key in architecture.bias_keys]
    if any(type(value) is not bool for value in given) or len(set(given)) > 1:
        keys = " and ".join(architecture.bias_keys)
        raise AlphaError(f"{source} cannot be used: {keys} are not both true or both false, as in Alpha.")
    return bool(given and given[0])


def _rope_base(architecture: Architecture, values: Mapping[str, Any], source: str) -> float:
    """transformers up to 4 has rope_theta and rope_scaling, and from 5 on both in rope_parameters."""
    said = [key for key in ("rope_parameters", "rope_scaling", "rope_theta") if values.get(key) is not None]
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not said and architecture.default_rope:
        parameters = architecture.default_rope
    if not isinstance(parameters, dict):
        raise _cannot_say(source, said[0], parameters)
    kind = parameters.get("rope_type", parameters.get("type"))
    if kind not in _UNSCALED:
        raise AlphaError(f"{source} cannot be used: its rope scaling {shown(kind)} is not one that Alpha computes.")
    for factor in (parameters.get("partial_rotary_factor"), values.get("partial_rotary_factor")):
        if factor not in (None, 1):
            raise _cannot_say(source, "partial_rotary_factor", factor)
    return parameters.get("rope_theta") or values.get("rope_theta") or 10000.0


def _dropout(values: Mapping[str, Any], source: str) -> float:
    """Only training has it, so different ones are no reason to refuse; then it is that of the residual stream."""
    return values.get("resid_pdrop", 0.0)


def _cannot_say(source: str, key: str, value: Any) -> AlphaError:
    return AlphaError(f"{source} cannot be used: Alpha has no model whose {key} is {shown(value)}.")

"""The modeling file beside an exported model with soft caps: the architecture of transformers, and the caps.

A model type of its own keeps transformers from loading the folder without the file, and computing something else.
"""

from alpha.exchange import CUSTOM_PREFIX, Architecture

FILE_NAME = "modeling_alpha.py"

_SOURCE = '''\
"""{model} with smooth caps, cap * tanh(x / cap), on attention scores and logits (Gemma 2, section 2)."""

import torch
from transformers import {config}, {model}
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class AlphaConfig({config}):
    model_type = "{model_type}"


def soft_cap(x, cap):
    return cap * torch.tanh(x / cap) if cap else x


def capped_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = soft_cap(scores, module.config.attn_logit_softcapping)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register("alpha_capped", capped_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("alpha_capped", eager_mask)


class CappedHead(torch.nn.Linear):
    cap = 0.0

    def forward(self, x):
        return soft_cap(super().forward(x), self.cap)


class AlphaForCausalLM({model}):
    config_class = AlphaConfig

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "attn_logit_softcapping", 0.0):
            config._attn_implementation = "alpha_capped"
        self.lm_head = CappedHead(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.cap = getattr(config, "final_logit_softcapping", 0.0)
        self.post_init()
'''


def modeling_source(architecture: Architecture) -> str:
    """The Python file for `trust_remote_code`."""
    base = architecture.class_name.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return _SOURCE.format(
        model=architecture.class_name, config=f"{base}Config", model_type=CUSTOM_PREFIX + architecture.name
    )


def auto_map() -> dict[str, str]:
    """What config.json says of the file."""
    module = FILE_NAME.removesuffix(".py")
    return {"AutoConfig": f"{module}.AlphaConfig", "AutoModelForCausalLM": f"{module}.AlphaForCausalLM"}

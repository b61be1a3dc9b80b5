"""Golden files of the model: logits, loss, gradients and ten training losses, computed by PyTorch in float64.

An implementation independent of Alpha, written from the papers; it imports nothing of Alpha. Arithmetic is float64
throughout and gradients come from autograd. Initial parameters are rounded to float32 before they are used, so that a
float32 and a float64 run start from exactly the same numbers.

Each choice with its source; x is [B, T, C], W is stored [in, out], eps = 1e-5:

- Block, GPT-2 (Radford et al. 2019, section 2.3): pre-norm, x = x + attention(ln_1(x)); x = x + mlp(ln_2(x)), and a
  final norm before the head. Linear layer: y = x W + b. With bias off neither linear layers nor norms have biases.
- layernorm (Ba et al. 2016, equations 3 and 4): (x - mean) / sqrt(variance + eps) * w + b, variance over C values
  (not C - 1). rmsnorm (Zhang and Sennrich 2019, equation 4): x / sqrt(mean(x^2) + eps) * w, never a bias.
- learned position: wte[token] + wpe[position], position 0 first.
- rope (Su et al. 2021, equation 34), base 10000, in half-split layout (GPT-NeoX, Llama): with
  angle_i = position * 10000^(-2i/D), i in 0..D/2-1, the pair (x_i, x_{i+D/2}) becomes
  (x_i cos - x_{i+D/2} sin, x_{i+D/2} cos + x_i sin). Queries and keys only.
- qk_norm (Henry et al. 2020, with the root mean square of Zhang and Sennrich): each query and key head is
  RMS-normalized over its D values, times a weight [D] shared by all heads, before rope.
- attention (Vaswani et al. 2017, equation 1): softmax(q k^T / sqrt(D)) v, causal: position t sees 0..t.
- grouped queries (Ainslie et al. 2023): query head h reads key and value head h // (H / KV). Columns of c_attn: H
  queries, KV keys, KV values, each head D wide.
- soft caps (Gemma 2, Gemma Team 2024, section 2): s = cap * tanh(s / cap); attention scores after the scale and before
  the mask, logits after the head.
- gelu (Hendrycks and Gimpel 2016, section 2): 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); gelu_exact:
  x Phi(x) by erf; relu2 (So et al. 2021, "Primer"): relu(x)^2; silu: x sigmoid(x).
- swiglu, geglu (Shazeer 2020, equation 6): act(x W_gate) * (x W_up); the first F columns of c_fc are the gate, the last
  F the up projection; geglu uses the tanh gelu.
- tied head: logits = x wte^T; untied: x lm_head^T.
- loss: mean over B T positions of -log softmax(logits)[target], in nats; tokens [B, T + 1] give inputs [:, :-1] and
  targets [:, 1:].
- clipping (Pascanu et al. 2013, algorithm 1): g = g * limit / |g| when the norm over all parameters |g| > limit, with
  no epsilon (torch.nn.utils.clip_grad_norm_ divides by |g| + 1e-6 instead and is not used).
- AdamW (Loshchilov and Hutter 2017, algorithm 2): torch.optim.AdamW; the decay p -= lr * weight_decay * p comes first,
  and only for parameters of two dimensions (embeddings and head included).
"""

import dataclasses
import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from golden_file import Golden, main
from torch import Tensor

EPSILON = 1e-5
ROPE_BASE = 10000.0
BATCH = 2
STEPS = 10
TRAINING = {
    "optim": "adamw",
    "lr": 1e-2,
    "weightDecay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "gradClip": 1.0,
}

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One model; fields are the configuration's keys in snake case."""

    block: int = 12
    layers: int = 2
    dim: int = 16
    heads: int = 4
    kv_heads: int = 4
    ffn_dim: int = 64
    activation: str = "gelu"
    norm: str = "layernorm"
    position: str = "learned"
    qk_norm: bool = False
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    bias: bool = True
    tied: bool = True
    vocab_size: int = 29

    @property
    def head_width(self) -> int:
        return self.dim // self.heads

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    def config(self) -> dict[str, object]:
        """The camelCase configuration."""
        result = {}
        for name, value in dataclasses.asdict(self).items():
            first, *rest = name.split("_")
            result[first + "".join(word.capitalize() for word in rest)] = value
        return result


MODERN = Case(
    norm="rmsnorm", position="rope", activation="relu2", bias=False, tied=False, qk_norm=True, logit_soft_cap=15.0
)
CASES = {
    "gpt2": Case(),
    "modern": MODERN,
    "modern_gqa": dataclasses.replace(MODERN, kv_heads=2, activation="swiglu", ffn_dim=32, attention_soft_cap=5.0),
    "geglu_bias": Case(activation="geglu", ffn_dim=24, tied=False),
}
SEEDS = {"gpt2": 1, "modern": 2, "modern_gqa": 3, "geglu_bias": 12}
"""The last was chosen so that some training steps are clipped and some are not; in the others all are."""


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The parameters in GPT-2's names and order."""
    C, D, F_ = case.dim, case.head_width, case.ffn_dim
    result: dict[str, tuple[int, ...]] = {"wte.weight": (case.vocab_size, C)}

    def linear(name: str, inputs: int, outputs: int) -> None:
        result[f"{name}.weight"] = (inputs, outputs)
        if case.bias:
            result[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        result[f"{name}.weight"] = (C,)
        if case.bias and case.norm == "layernorm":
            result[f"{name}.bias"] = (C,)

    if case.position == "learned":
        result["wpe.weight"] = (case.block, C)
    for layer in range(case.layers):
        prefix = f"h.{layer}"
        norm(f"{prefix}.ln_1")
        linear(f"{prefix}.attn.c_attn", C, (case.heads + 2 * case.kv_heads) * D)
        if case.qk_norm:
            result[f"{prefix}.attn.q_norm.weight"] = (D,)
            result[f"{prefix}.attn.k_norm.weight"] = (D,)
        linear(f"{prefix}.attn.c_proj", case.heads * D, C)
        norm(f"{prefix}.ln_2")
        linear(f"{prefix}.mlp.c_fc", C, 2 * F_ if case.gated else F_)
        linear(f"{prefix}.mlp.c_proj", F_, C)
    norm("ln_f")
    if not case.tied:
        result["lm_head.weight"] = (case.vocab_size, C)
    return result


def initial_parameters(case: Case, generator: torch.Generator) -> Parameters:
    """Normal with deviation 0.2 (matrices) or 0.1 (vectors, around 1 for norm weights), representable in float32.

    Larger than a real initialization, so that no gradient is tiny and every option shows in the logits.
    """
    result = {}
    for name, shape in shapes(case).items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = 0.2 * values if len(shape) == 2 else 0.1 * values
        if len(shape) == 1 and name.endswith(".weight"):
            values = 1 + values
        result[name] = values.float().double()
    return result


def random_tokens(case: Case, generator: torch.Generator) -> Tensor:
    """[BATCH, block + 1] tokens of a noisy affine recurrence, so that there is something to learn."""
    columns = [torch.randint(case.vocab_size, (BATCH,), generator=generator)]
    for _ in range(case.block):
        noise = torch.randint(2, (BATCH,), generator=generator)
        columns.append((5 * columns[-1] + 7 + noise) % case.vocab_size)
    return torch.stack(columns, dim=1)


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    """x W + b with W stored [in, out]; b is absent when biases are off."""
    return F.linear(x, p[f"{name}.weight"].T, p.get(f"{name}.bias"))


def normalize(case: Case, p: Parameters, name: str, x: Tensor) -> Tensor:
    """Layer norm or RMS norm over the last axis."""
    weight = p[f"{name}.weight"]
    if case.norm == "rmsnorm":
        return rms_norm(x, weight)
    return F.layer_norm(x, weight.shape, weight, p.get(f"{name}.bias"), EPSILON)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * w."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of [B, heads, T, D], half-split, as multiplication of complex numbers by e^(i angle)."""
    T, D = x.shape[-2:]
    frequencies = ROPE_BASE ** (-torch.arange(0, D, 2, dtype=x.dtype) / D)
    angles = torch.outer(torch.arange(T, dtype=x.dtype), frequencies)
    first, second = x.chunk(2, dim=-1)
    rotated = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap); 0 means no cap."""
    return cap * torch.tanh(x / cap) if cap else x


def attend(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q [B, H, T, D] over k and v [B, KV, T, D]."""
    if not case.attention_soft_cap:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    k = k.repeat_interleave(case.heads // case.kv_heads, dim=1)
    v = v.repeat_interleave(case.heads // case.kv_heads, dim=1)
    T = q.shape[-2]
    scores = soft_cap(q @ k.mT / math.sqrt(case.head_width), case.attention_soft_cap)
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
    return scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v


def attention(case: Case, p: Parameters, prefix: str, x: Tensor) -> Tensor:
    """The attention half of a block, projections included."""
    B, T, _ = x.shape
    D, H, KV = case.head_width, case.heads, case.kv_heads
    projected = linear(p, f"{prefix}.c_attn", x).view(B, T, H + 2 * KV, D).transpose(1, 2)
    q, k, v = projected.split([H, KV, KV], dim=1)
    if case.qk_norm:
        q = rms_norm(q, p[f"{prefix}.q_norm.weight"])
        k = rms_norm(k, p[f"{prefix}.k_norm.weight"])
    if case.position == "rope":
        q, k = rotate(q), rotate(k)
    y = attend(case, q, k, v).transpose(1, 2).reshape(B, T, H * D)
    return linear(p, f"{prefix}.c_proj", y)


def feed_forward(case: Case, p: Parameters, prefix: str, x: Tensor) -> Tensor:
    """The feed-forward half of a block."""
    hidden = linear(p, f"{prefix}.c_fc", x)
    match case.activation:
        case "gelu":
            hidden = F.gelu(hidden, approximate="tanh")
        case "relu2":
            hidden = F.relu(hidden).square()
        case "swiglu":
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * up
        case "geglu":
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.gelu(gate, approximate="tanh") * up
        case other:
            raise ValueError(f"no case uses the activation {other}")
    return linear(p, f"{prefix}.c_proj", hidden)


def forward(case: Case, p: Parameters, inputs: Tensor) -> Tensor:
    """Logits [B, T, V] of inputs [B, T]."""
    x = F.embedding(inputs, p["wte.weight"])
    if case.position == "learned":
        x = x + p["wpe.weight"][: inputs.shape[1]]
    for layer in range(case.layers):
        x = x + attention(case, p, f"h.{layer}.attn", normalize(case, p, f"h.{layer}.ln_1", x))
        x = x + feed_forward(case, p, f"h.{layer}.mlp", normalize(case, p, f"h.{layer}.ln_2", x))
    head = p["wte.weight"] if case.tied else p["lm_head.weight"]
    return soft_cap(F.linear(normalize(case, p, "ln_f", x), head), case.logit_soft_cap)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def trainable(parameters: Parameters, dtype: torch.dtype) -> Parameters:
    """Copies that autograd follows; an optimizer changes them in place, never `parameters`."""
    return {name: value.to(dtype, copy=True).requires_grad_() for name, value in parameters.items()}


def clip(parameters: Parameters, limit: float) -> Tensor:
    """Scale the gradients to a global norm of at most `limit`; returns the norm before."""
    gradients = [value.grad for value in parameters.values() if value.grad is not None]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)
    return norm


def train(case: Case, initial: Parameters, batches: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Losses and gradient norms (before clipping) of one AdamW step per batch of `batches` [STEPS, B, T + 1]."""
    p = trainable(initial, dtype)
    groups = [
        {"params": [v for v in p.values() if v.ndim == 2], "weight_decay": TRAINING["weightDecay"]},
        {"params": [v for v in p.values() if v.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=TRAINING["lr"],
        betas=(TRAINING["beta1"], TRAINING["beta2"]),
        eps=TRAINING["eps"],
        foreach=False,
    )
    losses, norms = [], []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(forward(case, p, batch[:, :-1]), batch[:, 1:])
        loss.backward()
        norms.append(clip(p, TRAINING["gradClip"]))
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


def generate(seed: int, case: Case) -> Golden:
    """Everything of one case."""
    generator = torch.Generator().manual_seed(seed)
    initial = initial_parameters(case, generator)
    tokens = random_tokens(case, generator)
    batches = torch.stack([random_tokens(case, generator) for _ in range(STEPS)])
    p = trainable(initial, torch.float64)
    logits = forward(case, p, tokens[:, :-1])
    loss = loss_of(logits, tokens[:, 1:])
    loss.backward()
    losses, norms = train(case, initial, batches, torch.float64)
    tensors = {
        "tokens": tokens.int(),
        "logits": logits.detach(),
        "loss": loss.detach(),
        "training.tokens": batches.int(),
        "training.losses": losses,
        "training.gradient_norms": norms,
    }
    tensors |= {f"parameter.{name}": value.float() for name, value in initial.items()}
    tensors |= {f"gradient.{name}": value.grad for name, value in p.items() if value.grad is not None}
    verify(case, tensors, torch.Generator().manual_seed(seed))
    return tensors, {"config": case.config(), "training": TRAINING}


def verify(case: Case, tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    """Recompute from what is stored: logits, loss, and each gradient along a random direction by finite differences."""
    prefix = "parameter."
    p = {name.removeprefix(prefix): value.double() for name, value in tensors.items() if name.startswith(prefix)}
    inputs, targets = tensors["tokens"][:, :-1].long(), tensors["tokens"][:, 1:].long()
    torch.testing.assert_close(forward(case, p, inputs), tensors["logits"], rtol=0, atol=1e-12)
    torch.testing.assert_close(loss_of(tensors["logits"], targets), tensors["loss"], rtol=0, atol=1e-12)
    h = 1e-5
    for name, value in p.items():
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        above, below = (
            loss_of(forward(case, {**p, name: value + step * direction}, inputs), targets) for step in (h, -h)
        )
        expected = (tensors[f"gradient.{name}"] * direction).sum()
        torch.testing.assert_close((above - below) / (2 * h), expected, rtol=1e-6, atol=1e-8)


if __name__ == "__main__":
    main(
        "Golden files of the model.",
        {f"model_{name}.safetensors": functools.partial(generate, SEEDS[name], case) for name, case in CASES.items()},
    )

"""PyTorch's side of comparisons with Alpha; needs torch and nothing of Alpha.

    PYTHON_WITH_TORCH perf/torch_peer.py train|ops|serve MODE SHAPE
    PYTHON_WITH_TORCH perf/torch_peer.py learn MODE RECIPE
    PYTHON_WITH_TORCH perf/torch_peer.py decode fp32 SHAPE

The first is that of perf/compare_train.sh, _ops.sh and _serve.sh, on a CUDA device. SHAPE is a JSON object with
layers, heads, dim, block, batch and vocabulary. MODE is a precision, fp32 or bf16 (autocast; operations have bf16
operands, and what is served is in bf16 or fp16 throughout), followed by -compile for torch.compile and -graph for a
step that is one CUDA graph. For each line that it reads it measures once more, and prints a line: a JSON object of
seconds by name. What is served: texts that go on with the likeliest tokens, keys and values in a cache with room for a
context, and a prompt, whose keys and values are not kept.

The second trains as nanoGPT does (AdamW with decay 0.1 of matrices and betas 0.9 and 0.99, clipping at 1, a
cosine from lr to lr/10 after a twentieth of the steps as warm-up, deviations 0.02 and for projections into the residual
stream 0.02/sqrt(2 layers), no biases) on the bytes of a text, and predicts those of another. MODE is as above; bf16 is
for CUDA. RECIPE is a JSON object with layers, heads, dim, block, batch, lr, seed, data and heldOut (paths), and either
steps, or seconds, or seconds of the whole process (within), for which trial steps say how many they are (compiling
counts in the last alone); if need be device (cpu), threads (PyTorch's choice), dropout (0), and, where both files have
tokens, two bytes each, vocabulary and bytes, as many as the held-out text has. Prints a JSON object with bitsPerByte,
steps, tokens and seconds.

The third is that of perf/decode.py: an eager loop on the CPU with a cache of keys and values that grows in place, under
`inference_mode`, which takes the likeliest token. For each line that it reads, a JSON array of texts side by side,
tokens of each and threads, it prints a line: tokens a second.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()

import torch  # noqa: E402 - importing it takes seconds of `within`
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

WARM_UP_SECONDS = 0.5
SECONDS = 1.0
BATCHES = 4
TRIAL_STEPS = 40
TEXTS, CONTINUED_TOKENS, CONTEXT = (1, 8, 16, 64), 400, 512
"""What is served, as `alpha bench` has it."""

BATCH = 32
"""Windows of the held-out text that are predicted together."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(dim, bias=bias), nn.LayerNorm(dim, bias=bias)
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim, bias), nn.Linear(dim, dim, bias)
        self.c_fc, self.mlp_proj = nn.Linear(dim, 4 * dim, bias), nn.Linear(4 * dim, dim, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        parts = self.c_attn(self.ln_1(x)).split(C, 2)
        query, key, value = (each.view(B, T, self.heads, C // self.heads).transpose(1, 2) for each in parts)
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.after(x, attended, dropout)

    def after(self, x: torch.Tensor, attended: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        """What follows attention."""
        x = x + functional.dropout(self.c_proj(attended.transpose(1, 2).reshape(x.shape)), dropout)
        hidden = functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + functional.dropout(self.mlp_proj(hidden), dropout)


class Model(nn.Module):
    """GPT-2 with tied embeddings and its mean loss."""

    def __init__(
        self,
        layers: int,
        heads: int,
        dim: int,
        block: int,
        vocabulary: int,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.wte, self.wpe = nn.Embedding(vocabulary, dim), nn.Embedding(block, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, bias, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim, bias=bias)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = functional.linear(self.ln_f(self.stream(ids)), self.wte.weight)
        return functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))

    def stream(self, ids: torch.Tensor) -> torch.Tensor:
        """What the last block leaves."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return x

    def likeliest(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens that follow the last positions."""
        return functional.linear(self.ln_f(x[:, -1:]), self.wte.weight)[:, -1].argmax(-1, keepdim=True)


def training_step(shape: dict[str, int], mode: str) -> Callable[[], object]:
    """A whole step with AdamW and clipping, on a few batches in turn."""
    batch = shape.pop("batch")
    model = Model(**shape).cuda()
    forward = torch.compile(model) if "compile" in mode else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True, capturable="graph" in mode)
    size = (BATCHES, batch, shape["block"])
    ids = torch.randint(0, shape["vocabulary"], size, device="cuda")
    turn = 0

    def step() -> None:
        nonlocal turn
        turn = 0 if "graph" in mode else (turn + 1) % BATCHES
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled="bf16" in mode):
            loss = forward(ids[turn], ids[turn - 1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Captured(step) if "graph" in mode else step


class Captured:
    """A step as one CUDA graph, which has only the addresses of the step's tensors. So the step, which holds them, is
    kept: what is freed goes back to the driver when the next graph is captured."""

    def __init__(self, step: Callable[[], object]) -> None:
        self.step = step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(BATCHES):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            step()

    def __call__(self) -> None:
        self.graph.replay()


def operations(shape: dict[str, int], mode: str) -> dict[str, Callable[[], object]]:
    """Operations of a step, forward and backward, by the names that `alpha bench` has for them."""
    B, T, C, H, V = (shape[name] for name in ("batch", "block", "dim", "heads", "vocabulary"))
    M, dtype = B * T, torch.bfloat16 if "bf16" in mode else torch.float32

    def tensor(*size: int) -> torch.Tensor:
        return torch.randn(size, device="cuda", dtype=dtype, requires_grad=True)

    made: dict[str, Callable[[], object]] = {}

    def add(name: str, function: Callable[..., Any], *operands: torch.Tensor) -> None:
        run = torch.compile(function) if "compile" in mode else function
        y = run(*operands)
        dy = torch.randn_like(y)
        made[f"{name}/forward"] = lambda: run(*operands)
        made[f"{name}/backward"] = lambda: torch.autograd.grad(y, operands, dy, retain_graph=True)

    gelu = lambda x, w, b: functional.gelu(x @ w + b, approximate="tanh")  # noqa: E731
    residual = lambda x, w, b, r: x @ w + b + r  # noqa: E731
    attention = lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    add("layer_norm", lambda x, w, b: functional.layer_norm(x, (C,), w, b), tensor(M, C), tensor(C), tensor(C))
    add("attention_input", lambda x, w, b: x @ w + b, tensor(M, C), tensor(C, 3 * C), tensor(3 * C))
    add("attention", attention, *(tensor(B, H, T, C // H) for _ in range(3)))
    add("attention_output", residual, tensor(M, C), tensor(C, C), tensor(C), tensor(M, C))
    add("feed_forward_input", gelu, tensor(M, C), tensor(C, 4 * C), tensor(4 * C))
    add("feed_forward_output", residual, tensor(M, 4 * C), tensor(4 * C, C), tensor(C), tensor(M, C))
    hidden, weight, targets = tensor(M, C), tensor(V, C), torch.randint(0, V, (M,), device="cuda")

    def head(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy((x @ w.T).float(), targets)

    loss = torch.compile(head) if "compile" in mode else head
    made["cross_entropy"] = lambda: torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    return made


@torch.no_grad()
def serving(shape: dict[str, int], mode: str) -> dict[str, Callable[[], object]]:
    """What an engine does, by the names that `alpha bench` has for it."""
    dtype = torch.bfloat16 if "bf16" in mode else torch.float16
    names = ("layers", "heads", "dim", "block", "vocabulary")
    model = Model(**{name: shape[name] for name in names}).to("cuda", dtype)
    ids = torch.randint(0, shape["vocabulary"], (1, shape["block"]), device="cuda")
    made: dict[str, Callable[[], object]] = {}

    def add(name: str, steps: int, step: Callable[[], object], begin: Callable[[], object] = lambda: None) -> None:
        step = torch.compile(step) if "compile" in mode else step
        step = Captured(step) if "graph" in mode else step

        @torch.no_grad()
        def run() -> None:
            begin()
            for _ in range(steps):
                step()

        made[name] = run

    for texts in TEXTS:
        add(f"decode_{texts}", CONTINUED_TOKENS, *continuing(model, texts))
    add("prefill", 1, lambda: model.likeliest(model.stream(ids)))
    half = ids[:, : max(1, shape["block"] // 2)].contiguous()
    add("prefill_half", 1, lambda: model.likeliest(model.stream(half)))
    return made


def continuing(model: Model, texts: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A step that continues texts by a token each, and what has them begin anew."""
    weight, heads = model.wte.weight, model.blocks[0].heads
    size = (2, len(model.blocks), texts, heads, CONTEXT, weight.shape[1] // heads)
    keys, values = torch.zeros(size, device=weight.device, dtype=weight.dtype)
    ids = torch.zeros((texts, 1), device=weight.device, dtype=torch.long)
    place, places = ids.new_zeros(1), torch.arange(CONTEXT, device=weight.device)

    def step() -> None:
        x = model.wte(ids) + model.wpe(place)
        so_far = (places <= place).view(1, 1, 1, CONTEXT)
        for block, key, value in zip(model.blocks, keys, values, strict=True):
            parts = block.c_attn(block.ln_1(x)).view(texts, 1, 3, heads, -1).permute(2, 0, 3, 1, 4)
            key.index_copy_(2, place, parts[1])
            value.index_copy_(2, place, parts[2])
            x = block.after(x, functional.scaled_dot_product_attention(parts[0], key, value, so_far))
        ids.copy_(model.likeliest(x))
        place.add_(1)

    return step, place.zero_


def seconds_of(run: Callable[[], object]) -> float:
    """The median of five series, each of which is waited for at its end."""
    begin = time.perf_counter()
    count = 0
    while time.perf_counter() - begin < WARM_UP_SECONDS:
        run()
        torch.cuda.synchronize()
        count += 1
    repeats = max(1, round(count * SECONDS / WARM_UP_SECONDS / 5))
    found = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - begin) / repeats)
    return statistics.median(found)


class Learning:
    """A model that learns the bytes or the tokens of a text by nanoGPT's recipe."""

    def __init__(self, recipe: dict[str, Any], mode: str) -> None:
        self.recipe = recipe
        self.device = torch.device(recipe.get("device", "cpu"))
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled="bf16" in mode)
        self.text = self.read("data")
        shape = {name: recipe[name] for name in ("layers", "heads", "dim", "block")}
        vocabulary, dropout = recipe.get("vocabulary", 256), recipe.get("dropout", 0.0)
        self.model = Model(**shape, vocabulary=vocabulary, bias=False, dropout=dropout).to(self.device)
        self.forward = torch.compile(self.model) if "compile" in mode else self.model
        self.begin()

    def read(self, name: str) -> torch.Tensor:
        """A file's bytes, or its tokens."""
        dtype = torch.uint16 if "vocabulary" in self.recipe else torch.uint8
        content = torch.frombuffer(bytearray(Path(self.recipe[name]).read_bytes()), dtype=dtype)
        return content.to(self.device, torch.int32).long()

    def begin(self) -> None:
        """Draw the weights, and forget what was learned."""
        recipe = self.recipe
        torch.manual_seed(recipe["seed"])
        for name, parameter in self.model.named_parameters():
            into_stream = name.endswith(("c_proj.weight", "mlp_proj.weight"))
            if parameter.ndim == 2:
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * recipe["layers"]) ** 0.5 if into_stream else 0.02)
            else:
                nn.init.ones_(parameter)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [each for each in parameters if each.ndim == 2], "weight_decay": 0.1},
            {"params": [each for each in parameters if each.ndim != 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe["lr"], betas=(0.9, 0.99), fused=True)

    def step(self, lr: float) -> None:
        """One step on windows from anywhere in the text."""
        block, batch = self.recipe["block"], self.recipe["batch"]
        starts = torch.randint(len(self.text) - block, (batch, 1), device=self.device)
        windows = self.text[starts + torch.arange(block + 1, device=self.device)]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.autocast:
            loss = self.forward(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def train(self, steps: int) -> float:
        """All steps; returns the seconds that they take."""
        begin, warm_up, peak = time.perf_counter(), max(1, steps // 20), self.recipe["lr"]
        for step in range(steps):
            part = (step - warm_up) / max(1, steps - warm_up)
            decayed = 0.1 + 0.45 * (1.0 + math.cos(math.pi * part))
            self.step(peak * ((step + 1) / warm_up if step < warm_up else decayed))
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    @torch.no_grad()
    def bits_per_byte(self) -> float:
        """Of the held-out text in windows that follow each other, its first byte or token excepted; in float32."""
        self.model.eval()
        text, block = self.read("heldOut"), self.recipe["block"]
        predicted = len(text) - 1
        whole = predicted // block * block
        ids, targets = (text[first : first + whole].view(-1, block).split(BATCH) for first in (0, 1))
        batches = list(zip(ids, targets, strict=True))
        if whole < predicted:
            batches.append((text[None, whole:-1], text[None, whole + 1 :]))
        total = sum(float(self.model(*each)) * each[0].numel() for each in batches)
        return total / self.recipe.get("bytes", predicted) / math.log(2.0)


def learn(recipe: dict[str, Any], mode: str) -> dict[str, float]:
    """What a recipe gives; see above."""
    if threads := recipe.get("threads"):
        torch.set_num_threads(threads)
    learning = Learning(recipe, mode)
    learning.train(TRIAL_STEPS)  # compiles
    steps = recipe.get("steps")
    if not steps:
        step = learning.train(TRIAL_STEPS) / TRIAL_STEPS
        left = recipe.get("seconds") or recipe["within"] - (time.perf_counter() - BEGIN)
        steps = max(1, round(left / step))
    learning.begin()
    seconds = learning.train(steps)
    tokens = steps * recipe["batch"] * recipe["block"]
    return {"bitsPerByte": learning.bits_per_byte(), "steps": steps, "tokens": tokens, "seconds": seconds}


@torch.inference_mode()
def decode(shape: dict[str, int]) -> None:
    """Texts that a model with random weights continues, from one token; see above."""
    H, C, T = shape["heads"], shape["dim"], shape["block"]
    model = Model(shape["layers"], H, C, T, shape["vocabulary"])

    def run(texts: int, tokens: int) -> None:
        keys, values = torch.zeros(2, shape["layers"], texts, H, T, C // H)
        ids = torch.arange(texts)[:, None] % shape["vocabulary"]
        for place in range(tokens):
            x = model.wte(ids) + model.wpe.weight[place]
            for block, key, value in zip(model.blocks, keys, values, strict=True):
                parts = block.c_attn(block.ln_1(x)).view(texts, 1, 3, H, C // H).permute(2, 0, 3, 1, 4)
                key[:, :, place : place + 1], value[:, :, place : place + 1] = parts[1], parts[2]
                so_far = slice(0, place + 1)
                y = functional.scaled_dot_product_attention(parts[0], key[:, :, so_far], value[:, :, so_far])
                x = block.after(x, y)
            ids = model.likeliest(x)
            ids.tolist()  # whoever asked gets each token at once

    for line in sys.stdin:
        texts, tokens, threads = json.loads(line)
        torch.set_num_threads(threads)
        run(texts, 8)
        begin = time.perf_counter()
        run(texts, tokens)
        print(texts * tokens / (time.perf_counter() - begin), flush=True)


def main() -> None:
    """Measure once for each line, or learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "ops", "serve", "learn", "decode"])
    parser.add_argument("mode")
    parser.add_argument("shape", type=json.loads, help="or the recipe")
    arguments = parser.parse_args()
    what, mode, shape = arguments.what, arguments.mode, arguments.shape
    if what == "learn":
        print(json.dumps(learn(shape, mode)))
        return
    if what == "decode":
        decode(shape)
        return
    if what == "train":
        runs = {"step": training_step(shape, mode)}
    else:
        runs = (serving if what == "serve" else operations)(shape, mode)
    for _ in sys.stdin:
        print(json.dumps({name: seconds_of(run) for name, run in runs.items()}), flush=True)


if __name__ == "__main__":
    main()

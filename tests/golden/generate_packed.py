"""Golden file of packed training: the losses of twenty steps on documents that share windows, by PyTorch in float64.

Nothing here packs: each document is a sequence of its own, from position 0, and the loss of a step is the mean over all
of its targets that count, however they are spread over documents, windows and micro-batches. The model, AdamW and
clipping are those of `generate_model.py`; it imports nothing of Alpha. Stored are the windows that an implementation
which packs would be given: ids, targets (-1 where one does not count) and begins, where in its window each token's
document begins; what is left of a window is filled with documents without targets.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from generate_model import CASES, TRAINING, Case, clip, forward, initial_parameters, trainable
from golden_file import Golden, main
from torch import Tensor

STEPS = 20
SHAPE = (2, 2, 12)
"""Micro-batches of a step, windows of a micro-batch, places of a window."""

Window = tuple[Tensor, Tensor, Tensor]


def window(case: Case, generator: torch.Generator) -> Window:
    """Ids, targets and begins of a window with documents of a noisy affine recurrence, a third of it masked."""
    ids, targets, begins = (torch.zeros(SHAPE[-1], dtype=torch.int64) for _ in range(3))
    targets[:] = -1
    place = 0
    while place < SHAPE[-1]:
        length = min(int(torch.randint(1, 8, (), generator=generator)), SHAPE[-1] - place)
        document = [int(torch.randint(case.vocab_size, (), generator=generator))]
        for _ in range(length):
            noise = int(torch.randint(2, (), generator=generator))
            document.append((5 * document[-1] + 7 + noise) % case.vocab_size)
        kept = torch.rand(length, generator=generator) < 0.67
        ids[place : place + length] = torch.tensor(document[:-1])
        targets[place : place + length] = torch.where(kept, torch.tensor(document[1:]), -1)
        begins[place : place + length] = place
        place += length
    return ids, targets, begins


def loss_of(case: Case, p: dict[str, Tensor], windows: list[Window]) -> Tensor:
    """The mean over the targets that count, a document at a time."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, targets, begins in windows:
        for begin in begins.unique().tolist():
            own = begins == begin
            logits = forward(case, p, ids[own][None])[0]
            total = total + F.cross_entropy(logits, targets[own], ignore_index=-1, reduction="sum")
            count += int((targets[own] >= 0).sum())
    return total / count


def generate(seed: int, case: Case) -> Golden:
    """Initial parameters, windows and losses of one case."""
    generator = torch.Generator().manual_seed(seed)
    initial = initial_parameters(case, generator)
    count = SHAPE[0] * SHAPE[1]
    steps = [[window(case, generator) for _ in range(count)] for _ in range(STEPS)]
    p = trainable(initial, torch.float64)
    decayed = [[value for value in p.values() if (value.ndim == 2) == is_matrix] for is_matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed[0], "weight_decay": TRAINING["weightDecay"]}, {"params": decayed[1], "weight_decay": 0.0}],
        lr=TRAINING["lr"],
        betas=(TRAINING["beta1"], TRAINING["beta2"]),
        eps=TRAINING["eps"],
        foreach=False,
    )
    losses = []
    for windows in steps:
        optimizer.zero_grad()
        loss = loss_of(case, p, windows)
        loss.backward()
        clip(p, TRAINING["gradClip"])
        optimizer.step()
        losses.append(loss.detach())
    tensors = {f"parameter.{name}": value.float() for name, value in initial.items()} | {"losses": torch.stack(losses)}
    for index, name in enumerate(("ids", "targets", "begins")):
        stacked = torch.stack([torch.stack([each[index] for each in windows]) for windows in steps])
        tensors[name] = stacked.reshape(STEPS, *SHAPE).int()
    return tensors, {"config": case.config(), "training": TRAINING}


if __name__ == "__main__":
    small = {
        "packed_gpt2.safetensors": (21, CASES["gpt2"]),
        "packed_modern.safetensors": (22, CASES["modern_gqa"]),
    }
    main(
        "Twenty steps on packed documents, computed a document at a time.",
        {name: lambda seed=seed, case=case: generate(seed, case) for name, (seed, case) in small.items()},
    )

"""What `alpha bench` measures: tables of cases, named `suite/subject/what`."""

from collections.abc import Iterable

from alpha import bench_models as models
from alpha import bench_operations as operations
from alpha.activation import ACTIVATIONS
from alpha.bench import Case
from alpha.bench_models import Subject
from alpha.bench_operations import Works

SUBJECTS = {
    "cpu-quickstart": Subject(layers=2, heads=4, dim=64, block=64, batch=8, vocabulary=96),
    "quickstart": Subject(layers=4, heads=4, dim=128, block=128, batch=16, vocabulary=96),
    "chars10m-b8": Subject(layers=6, heads=6, dim=384, block=256, batch=8, vocabulary=65),
}
GPU_SUBJECTS = {
    "chars10m": Subject(layers=6, heads=6, dim=384, block=256, batch=64, vocabulary=65),
    "gpt2-124m": Subject(layers=12, heads=12, dim=768, block=1024, batch=32, vocabulary=50304),
}
"""Models that are trained on a GPU only: on a CPU a single step would take minutes."""

TOKENIZERS = ("char", "word", "bpe")


def all_cases(backend: str = "cpu_ref") -> list[Case]:
    """Every case of every suite that a backend is measured with."""
    trained = SUBJECTS if backend == "cpu_ref" else SUBJECTS | GPU_SUBJECTS
    return [
        *(case for name, subject in SUBJECTS.items() for case in operation_cases(name, subject)),
        *other_operation_cases("quickstart", SUBJECTS["quickstart"]),
        *(case for name, subject in SUBJECTS.items() for case in end_to_end_cases(name, subject)),
        *(Case(f"e2e/tokenizer/{name}", models.tokenizer(name)) for name in TOKENIZERS),
        *(Case(f"train/{name}", models.training_step(subject)) for name, subject in trained.items()),
    ]


def operation_cases(name: str, subject: Subject) -> list[Case]:
    """The operations that make up a training step, and then the bare matrix products that are part of them."""
    B, T, C, H, V, L = subject.batch, subject.block, subject.dim, subject.heads, subject.vocabulary, subject.layers
    M, D, F, P = B * T, C // H, 4 * C, subject.parameters
    table = [
        # what                            calls      work
        ("embedding",                     1,         operations.embedding(M, C, V)),
        ("position",                      1,         operations.position(B, T, C)),
        ("layer_norm",                    2 * L + 1, operations.layer_norm(M, C)),
        ("attention_input",               L,         operations.linear(M, C, 3 * C)),
        ("attention",                     L,         operations.attention(B, T, H, D)),
        ("attention_output",              L,         operations.linear(M, C, C, residual=True)),
        ("feed_forward_input",            L,         operations.linear(M, C, F, "gelu")),
        ("feed_forward_output",           L,         operations.linear(M, F, C, residual=True)),
        ("cross_entropy",                 1,         operations.cross_entropy(M, C, V)),
        ("add_gradients",                 2 * L,     operations.add(M, C)),
        ("gradient_norm",                 1,         operations.sum_of_squares(P)),
        ("adamw_update",                  1,         operations.adamw_update(P)),
        ("products/attention_input",      L,         operations.linear_products(M, C, 3 * C)),
        ("products/attention",            L,         operations.attention_products(B, T, H, D)),
        ("products/attention_output",     L,         operations.linear_products(M, C, C)),
        ("products/feed_forward_input",   L,         operations.linear_products(M, C, F)),
        ("products/feed_forward_output",  L,         operations.linear_products(M, F, C)),
        ("products/cross_entropy",        1,         operations.cross_entropy_products(M, C, V)),
    ]  # fmt: skip
    return _cases(name, table)


def other_operation_cases(name: str, subject: Subject) -> list[Case]:
    """The operations of other architectures, in the shapes that they would have here."""
    B, T, C, H = subject.batch, subject.block, subject.dim, subject.heads
    M, D, F = B * T, C // H, 4 * C
    table = [
        ("rms_norm",               0, operations.rms_norm(M, C)),
        ("rotary",                 0, operations.rotary(B, T, H, D)),
        ("dropout",                0, operations.dropout(M, C, 0.1)),
        *((f"activation/{kind}", 0, operations.activation(M, F, kind)) for kind in ACTIVATIONS),
    ]  # fmt: skip
    return _cases(name, table)


def end_to_end_cases(name: str, subject: Subject) -> list[Case]:
    """What a user waits for beside training."""
    return [
        Case(f"e2e/{name}/prefill", models.prefill(subject)),
        Case(f"e2e/{name}/decode", models.decode(subject, sequences=1)),
        Case(f"e2e/{name}/decode_8", models.decode(subject, sequences=8)),
        Case(f"e2e/{name}/evaluate", models.evaluation(subject)),
    ]


def _cases(subject: str, table: Iterable[tuple[str, int, Works]]) -> list[Case]:
    return [
        Case(f"ops/{subject}/{what}" + (f".{half}" if half else ""), work, calls)
        for what, calls, works in table
        for half, work in works.items()
    ]

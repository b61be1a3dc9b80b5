"""The table of activations, and what a new one costs: a row with its formula, and its two functions in GLSL."""

from pathlib import Path

import pytest
from toy_checkout import COMPILE, add, copy_of_checkout, lines, places, run

from alpha.activation import ACTIVATIONS, activation_named

MOST_LINES, MOST_PLACES = 20, 4

# What somebody adds for x / (1 + |x|), by file: before what, and the lines.
SOFTSIGN = {
    "alpha/activation.py": [
        (
            "@dataclass(frozen=True)\nclass Activation",
            '''\
def softsign(b: Primitives, x: Array) -> tuple[Array, Array]:
    """x / (1 + |x|): Bergstra et al. 2009."""
    share = b.divide(1.0, b.add(1.0, b.absolute(x)))
    return b.multiply(x, share), b.multiply(share, share)


''',
        ),
        ('    "swiglu"', '    "softsign": Activation(5, softsign),\n'),
    ],
    "kernels/activation.glsl": [
        (
            '#include "activation_kinds.glsl"',
            """\
float softsign(float x) { return x / (1.0 + abs(x)); }
float softsign_slope(float x) { return 1.0 / ((1.0 + abs(x)) * (1.0 + abs(x))); }

""",
        )
    ],
}

USE = """
import sys
import numpy as np
from alpha import activation
from alpha.backend_cpu_ref import CpuRef

assert activation.__file__.startswith(sys.argv[1]), activation.__file__
backend, x = CpuRef(), np.linspace(-3, 3, 24).reshape(2, 12)
y, saved = backend.activation(x, "softsign", training=True)
np.testing.assert_allclose(y, x / (1 + abs(x)), rtol=1e-14)
np.testing.assert_allclose(backend.activation_backward(np.ones_like(x), saved), 1 / (1 + abs(x)) ** 2, rtol=1e-14)
y, saved = backend.linear(x, np.eye(12), activation="softsign", training=True)
np.testing.assert_allclose(y, x / (1 + abs(x)), rtol=1e-14)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package and the kernels, with one more activation."""
    add(copy_of_checkout(tmp_path), SOFTSIGN)
    return tmp_path


def test_a_new_activation_is_a_row_and_two_functions(checkout: Path) -> None:
    # One place is left for the formula of the tests, in tests/definitions.py.
    assert places(SOFTSIGN) < MOST_PLACES
    assert lines(SOFTSIGN) <= MOST_LINES
    assert "softsign" in run(checkout, "alpha.py", "train", "--help").stdout
    used = run(checkout, "-c", USE, str(checkout))
    assert (used.returncode, used.stderr) == (0, "")
    # The kernels know it by its number, and those that apply activations, and no others, are no longer what is bundled.
    kinds = run(checkout, "-c", "import kernel_manifest; print(kernel_manifest.activation_kinds())").stdout
    assert kinds.count("default:\n        return softsign") == 2 and "case 4:\n        return silu(x);" in kinds
    stale = run(checkout, "build_scripts/kernel_bundle.py", "--check")
    names = (
        "activation, activation_backward, matmul_few, matmul_gradient, matmul_matrix, matmul_reduce, matmul_tiled, "
        "row_stages"
    )
    assert f"is not made from these sources ({names})" in stale.stderr
    compiled = run(checkout, "-c", COMPILE, "activation_backward")
    assert compiled.returncode == 0, compiled.stderr


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("Activation(5, softsign)", "Activation(4, softsign)", "two have the same number"),
        ("Activation(0, gelu, gated=True)", "Activation(7, gelu, gated=True)", "no activation without a gate has"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(checkout: Path, before: str, after: str, message: str) -> None:
    table = checkout / "alpha" / "activation.py"
    assert before in table.read_text()
    table.write_text(table.read_text().replace(before, after))
    result = run(checkout, "build_scripts/kernel_bundle.py", "--check")
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr


def test_an_activation_that_is_not_there_is_an_error() -> None:
    assert activation_named("relu") is ACTIVATIONS["relu"]
    with pytest.raises(ValueError, match="no activation is called 'swish'"):
        activation_named("swish")

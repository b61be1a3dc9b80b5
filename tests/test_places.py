"""What it costs to add something: a toy of each kind is really added to a copy of the checkout, used, and counted.

A place is a spot that somebody has to know; the lines that a test of the new thing takes are not counted. What an
activation costs is in test_activation.py.
"""

from pathlib import Path

import pytest
from toy_checkout import COMPILE, Edits, add, copy_of_checkout, places, run

# --- a fused optimizer: the sign of the gradient, Bernstein et al. 2018 -----------------------------------------------

SIGN = {
    "alpha/config.py": [(')\nBACKENDS = ("cpu_ref"', ', "signsgd"')],
    "alpha/backend_updates.py": [
        (
            "    def lion_update(",
            '''\
    def signsgd_update(self, parameter: Array, gradient: Array, control: UpdateControl, weight_decay: float) -> None:
        """p = p - lr weight_decay p - lr sign(g), in place."""
        self.decayed_step(parameter, self.sign(gradient), control, weight_decay)

''',
        )
    ],
    "alpha/optimizer.py": [
        (
            'class SGD(Optimizer, name="sgd")',
            '''\
class SignSGD(Optimizer, name="signsgd"):
    """The sign of the gradient (Bernstein et al. 2018), with decoupled weight decay on matrices."""

    def __init__(self, parameters: Parameters, training: TrainingConfig) -> None:
        super().__init__(parameters, training)
        self._groups = parameter_groups(parameters)

    def update(self, control: UpdateControl) -> None:
        for group in self._groups:
            decay = group.weight_decay(self.weight_decay)
            self.backend.signsgd_update(group.values, group.gradients, control, decay)

    def state(self) -> dict[str, Array]:
        return {}


''',
        )
    ],
    "kernels/signsgd_update.comp": [
        (
            "",
            """\
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"
#include "decayed.glsl"

void main() {
    if (accept.at[0] == 0) {
        return;
    }
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        vec4 step = sign(load_f32(gradient, i, whole));
        vec4 p = load_f32(parameter, i, whole);
        store_f32(parameter, i, decayed(p, step, learning_rate.at[0], weight_decay), whole);
    }
}
""",
        )
    ],
    "kernels/manifest.toml": [
        (
            "[softmax]\n",
            """\
[signsgd_update]
push = [
    "inout f32 parameter", "in f32 gradient", "in f32 learning_rate", "in b32 accept", "uint count",
    "float weight_decay",
]
constants = ["THREADS = 256", "VECTOR = 1"]
[signsgd_update.variants]
f32 = {}

""",
        )
    ],
}
TRAIN = """
import numpy as np
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios_update import UPDATES, Update
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.gpt import GPT
from alpha.optimizer import make_optimizer
from alpha.backend_updates import UpdateControl

backend = CpuRef()
model = GPT(backend, resolve_model(ModelConfig(block=4, layers=1, dim=4, heads=1)), 5)
model.parameters.initialize()
optimizer = make_optimizer(model.parameters, resolve_training(TrainingConfig(optim="signsgd", weight_decay=0.0)))
before = backend.to_numpy(model.parameters.values)
backend.fill(model.parameters.gradients, -3.0)
one = backend.from_numpy(np.ones(1, np.float32))
optimizer.update(UpdateControl(one, one, backend.from_numpy(np.ones(1, bool))))
np.testing.assert_allclose(backend.to_numpy(model.parameters.values), before + 1, rtol=1e-6)
assert "signsgd_update" in UPDATES and "signsgd_update" in vars(Update)
"""

# --- a fused operation: the cube of each element ----------------------------------------------------------------------

_CUBE_KERNEL = """\
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {{
    for (uint i = gl_GlobalInvocationID.x; i < count; i += GRID_THREADS) {{
        {}
    }}
}}
"""
CUBE = {
    "alpha/backend.py": [
        (
            "    def softmax(self",
            '''\
    def cube(self, x: Array, training: bool = False) -> tuple[Array, Saved]:
        """x^3"""
        return self.multiply(x, self.multiply(x, x)), (x if training else None)

    def cube_backward(self, dy: Array, saved: Saved) -> Array:
        return self.multiply(dy, self.multiply(3.0, self.multiply(saved, saved)))

''',
        )
    ],
    "alpha/ops.py": [
        (
            "def self_attention(",
            '''\
def cube(x: Tensor) -> Tensor:
    """See `Backend.cube`."""
    y, saved = x.backend.cube(x.data, recording(x))
    return _one(y, [x], lambda dy: [x.backend.cube_backward(dy, saved)])


''',
        )
    ],
    "alpha/backend_helios_rowwise.py": [
        (
            "    def softmax(self",
            """\
    def cube(self, x: HeliosArray, training: bool = False) -> tuple[HeliosArray, Saved]:
        x = self.contiguous(x)
        y = self.new(x.shape, "f32")
        self.dispatch("cube", "f32", groups_for(x.size), {}, x=x, y=y, count=x.size)
        return y, (x if training else None)

    def cube_backward(self, dy: HeliosArray, saved: Saved) -> HeliosArray:
        dx = self.new(dy.shape, "f32")
        dy = self.contiguous(dy)
        self.dispatch("cube_backward", "f32", groups_for(dy.size), {}, dy=dy, x=saved, dx=dx, count=dy.size)
        return dx

""",
        )
    ],
    "kernels/cube.comp": [("", _CUBE_KERNEL.format("y.at[i] = x.at[i] * x.at[i] * x.at[i];"))],
    "kernels/cube_backward.comp": [("", _CUBE_KERNEL.format("dx.at[i] = dy.at[i] * 3.0 * x.at[i] * x.at[i];"))],
    "kernels/manifest.toml": [
        (
            "[decayed_step]\n",
            """\
[cube]
push = ["in f32 x", "out f32 y", "uint count"]
constants = ["THREADS = 256"]
variants.f32 = {}

[cube_backward]
push = ["in f32 dy", "in f32 x", "out f32 dx", "uint count"]
constants = ["THREADS = 256"]
variants.f32 = {}

""",
        )
    ],
}
DIFFERENTIATE = """
import numpy as np
from alpha import ops
from alpha.autograd import Tape, Tensor
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_helios import Helios

backend, x = CpuRef(), np.linspace(-2, 2, 6)
y, saved = backend.cube(x, training=True)
np.testing.assert_allclose(y, x**3)
np.testing.assert_allclose(backend.cube_backward(np.ones(6), saved), 3 * x**2)
np.testing.assert_allclose(ops.cube(Tensor(backend, x)).data, x**3)
assert Helios.cube.__module__ == "alpha.backend_helios_rowwise"
"""

# --- a command, and an option of the model ----------------------------------------------------------------------------

COMMAND = {
    "alpha/cli.py": [('    "env": "', '    "greet": "Say hello.",\n')],
    "alpha/command_greet.py": [
        (
            "",
            '''\
"""`alpha greet`: says hello."""

from dataclasses import dataclass
from typing import Any

from alpha.option import option
from alpha.terminal import print_text


@dataclass(frozen=True)
class GreetOptions:
    """The options of `alpha greet`."""

    name: str = option("world", "Whom to greet.")


OPTIONS = (GreetOptions,)
DETAILS = ""


def run(given: dict[str, Any]) -> None:
    """Print the greeting."""
    print_text(f"Hello {GreetOptions(**given).name}")
''',
        )
    ],
}
OPTION = {
    "alpha/config.py": [
        (
            "    qk_norm: bool",
            '    embedding_scale: float = option(1.0, "Multiplies the embeddings.", group=_MODEL, minimum=0)\n',
        )
    ],
    "alpha/gpt.py": [
        ('        x = self._drop(x, dropout, "embedding")', "        x = ops.multiply(x, config.embedding_scale)\n")
    ],
}
SCALE = """
import numpy as np
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ModelConfig, resolve_model
from alpha.gpt import GPT

backend, logits = CpuRef(), []
for scale in (1.0, 0.0):
    model = GPT(backend, resolve_model(ModelConfig(block=4, layers=1, dim=4, heads=1, embedding_scale=scale)), 5)
    model.parameters.initialize()
    logits.append(backend.to_numpy(model.logits(backend.from_numpy(np.zeros((1, 3), np.int32))).data))
assert np.abs(logits[0]).max() > 0 == np.abs(logits[1]).max()
"""


def added(folder: Path, toy: Edits, most: int) -> Path:
    assert places(toy) <= most
    add(copy_of_checkout(folder), toy)
    return folder


@pytest.mark.parametrize(
    ("toy", "most", "program", "kernels"),
    [
        pytest.param(SIGN, 5, TRAIN, ("signsgd_update",), id="fused-optimizer"),
        pytest.param(CUBE, 6, DIFFERENTIATE, ("cube", "cube_backward"), id="fused-operation"),
    ],
)
def test_something_with_kernels(tmp_path: Path, toy: Edits, most: int, program: str, kernels: tuple[str, ...]) -> None:
    checkout = added(tmp_path, toy, most)
    used = run(checkout, "-c", program)
    assert (used.returncode, used.stderr) == (0, "")
    stale = run(checkout, "build_scripts/kernel_bundle.py", "--check")
    assert f"is not made from these sources ({', '.join(kernels)})" in stale.stderr
    compiled = run(checkout, "-c", COMPILE, *kernels)
    assert compiled.returncode == 0, compiled.stderr


def test_a_command(tmp_path: Path) -> None:
    """The list of modules, which names it as well, is one place more."""
    checkout = added(tmp_path, COMMAND, 2)
    assert "\n  greet            Say hello.\n" in run(checkout, "alpha.py", "--help").stdout
    assert "--name=TEXT" in run(checkout, "alpha.py", "greet", "--help").stdout
    assert run(checkout, "alpha.py", "greet", "--name=there").stdout == "Hello there\n"


def test_an_option_of_the_model(tmp_path: Path) -> None:
    checkout = added(tmp_path, OPTION, 2)
    used = run(checkout, "-c", SCALE)
    assert (used.returncode, used.stderr) == (0, "")
    assert "--embeddingScale=X" in run(checkout, "alpha.py", "train", "--help").stdout

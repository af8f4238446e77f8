"""Steps of 16-bit weights as one CUDA kernel, run on the host: rows alone and together, and what is not read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_steps import Driver, HostSteps
from metal_host_kernels import compiler
from specdec.kernels.reference.layers import rotary_frequencies, rotations
from specdec.kernels.reference.selection import weights_to_take

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.layers import AttentionVectors, Layer, Mlp
from specdec.runtimes.mlx.model import Kind
from specdec.runtimes.mlx.pack import LINE, pack_dense, padded
from specdec.runtimes.mlx.step import WholeStep
from specdec.runtimes.mlx.weights import Linear, lines_of

mx: Any = pytest.importorskip("mlx.core")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")]

TOKENS, POSITION = [3, 100, 7, 150, 42], 7


class Model:
    """A random model; outputs of its joined matrices are no whole lines, and it has a small matrix."""

    def __init__(self, monkeypatch: Any, folder: Any, dtype: str = "float16", *, bias: bool = False) -> None:
        self.dtype = getattr(mx, dtype)
        self.config = c = ModelConfig.uniform(
            family="llama", vocab_size=200, hidden_size=192, intermediate_size=320, num_layers=2, num_heads=4,
            num_kv_heads=2, head_dim=32, norm_eps=1e-5, rope_theta=10000.0, max_context=512,
            qkv_bias=bias,
        )  # fmt: skip
        self.rng = np.random.default_rng(1)
        q, kv, hidden, inner = 128, 64, c.hidden_size, c.intermediate_size
        self.layers = []
        for _ in range(c.num_layers):
            qkv = self._linear([(q, hidden), (kv, hidden), (kv, hidden)])
            mlp = Mlp(inner, self._linear([(inner, hidden)] * 2, paired=True), self._linear([(hidden, inner)]))
            norms = [mx.array((1 + 0.1 * self.rng.standard_normal(hidden)).astype(np.float32)) for _ in range(2)]
            layer = Layer(c.layers[0], qkv, self._linear([(hidden, q)]), mlp, attn_norm=norms[0], mlp_norm=norms[1])
            if bias:
                biases = mx.array(self.rng.standard_normal(q + 2 * kv).astype(np.float32))
                layer.attention = AttentionVectors(bias=biases)
            self.layers.append(layer)
        self.table = self._weights(c.vocab_size, hidden) * 16
        self.head = self._packed([self.table], paired=False)
        self.linears = [linear for layer in self.layers for linear in layer.linears] + [self.head]
        step = WholeStep(mx, c, dtype=dtype, tier_sizes=(4, 4, 4, 4), driver=Driver())  # type: ignore[arg-type]
        self.steps = HostSteps(mx, step, monkeypatch, folder)
        turned = rotations(np.arange(64), rotary_frequencies(c, 0), factor=1.0)
        self.angles = np.stack(turned, axis=-1).astype(np.float32)
        shape = (c.num_layers, 2, c.num_kv_heads, SPAN, c.head_dim)
        self.cache = (0.5 * np.random.default_rng(2).standard_normal(shape)).astype(np.float16)

    def _weights(self, outputs: int, inputs: int) -> Any:
        return mx.array((self.rng.standard_normal((outputs, inputs)) * inputs**-0.5).astype(np.float32)).astype(
            self.dtype
        )

    def _linear(self, shapes: list[tuple[int, int]], *, paired: bool = False) -> Linear:
        return self._packed([self._weights(*shape) for shape in shapes], paired=paired)

    def _packed(self, parts: list[Any], *, paired: bool) -> Linear:
        outputs = tuple(part.shape[0] for part in parts)
        linear = Linear(tuple(map(str, range(len(parts)))), outputs, parts[0].shape[1], paired)
        linear.weights = pack_dense(mx, "cuda", linear.join(mx, parts), linear.rows)
        linear.lines = lines_of(mx, linear)
        linear.scores = mx.stack([mx.mean(mx.abs(part.astype(mx.float32)), axis=0)[:, None] for part in parts])
        return linear

    def logits(self, rows: int, tokens: list[int], effort: float, *, backwards: bool = False) -> np.ndarray:
        """Logits of a step by the kernel for `rows` rows."""
        kind = Kind("inputs" if effort < 1 else "dense", effort < 1, rows, 0, rows)
        ones = mx.ones((self.config.hidden_size,))
        entries = self.steps.step.entries(kind, self.layers, self.head, ones, self.table)
        take = [weights_to_take(effort, linear.inputs) for linear in self.linears for _ in linear.names]
        given = (kind, entries, self.cache, self.angles, np.array(take, np.int32), tokens)
        return self.steps.logits(*given, position=POSITION, backwards=backwards)

    def leave_out(self, poison: float) -> None:
        """Give a third of every matrix's inputs the score 0, so that they are taken last, and weights that show."""
        for number, linear in enumerate(self.linears):
            left_out = np.random.default_rng(number).random(linear.inputs) < 0.3
            scores, padding = np.array(linear.scores), np.ones(padded(linear.inputs) - linear.inputs, bool)
            scores[:, left_out] = 0
            lines = np.array(linear.lines.astype(mx.float32)).reshape(-1, padded(linear.inputs), LINE)
            lines[:, np.concatenate([left_out, padding])] = poison
            linear.scores, linear.lines = mx.array(scores), mx.array(lines.reshape(-1)).astype(self.dtype)


@pytest.mark.parametrize(("dtype", "bias"), [("float16", False), ("bfloat16", False), ("bfloat16", True)])
def test_rows_take_their_own_inputs_alone_and_together(monkeypatch, tmp_path, dtype, bias):
    model = Model(monkeypatch, tmp_path, dtype, bias=bias)
    dense = model.logits(8, TOKENS, 1.0)
    assert np.array_equal(model.logits(1, TOKENS[:1], 1.0)[0], dense[0])
    everything = model.logits(8, TOKENS, 0.9999)
    # Sums are cut elsewhere, which may round an activation to the next float16.
    assert np.abs(everything - dense).max() < 5e-4 * np.abs(dense).max()
    for effort in (0.6, 0.05):
        together = model.logits(8, TOKENS, effort)
        assert 0.01 < np.abs(together - dense).max() / np.abs(dense).max() < 1
        for backwards in (False, True):
            assert np.array_equal(model.logits(8, TOKENS[:3], effort, backwards=backwards), together[:3])
            assert np.array_equal(model.logits(1, TOKENS[:1], effort, backwards=backwards)[0], together[0])


def test_inputs_that_no_row_takes_are_not_read(monkeypatch, tmp_path):
    model = Model(monkeypatch, tmp_path)
    model.leave_out(np.nan)
    poisoned = model.logits(8, TOKENS, 0.5)
    assert np.isfinite(poisoned).all()
    assert np.array_equal(model.logits(1, TOKENS[:1], 0.5)[0], poisoned[0])
    model.leave_out(0.0)
    assert np.array_equal(model.logits(8, TOKENS, 0.5), poisoned)

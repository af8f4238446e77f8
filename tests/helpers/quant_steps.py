"""Steps of quantised models of real shapes without any bytes, and without a GPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.quant import PackedQuant, quant_form
from specdec.runtimes.mlx.step_quant import QuantStep

GRID = 132
SHAPES: dict[str, dict[str, Any]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 14336, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_heads": 12, "num_kv_heads": 2, "head_dim": 128},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_heads": 64, "num_kv_heads": 8, "head_dim": 128},
}


def model(shape: str, *types: str, part: bool = False, layers: int = 2) -> tuple[ModelConfig, list[Any], Any]:
    """Configuration, blocks and logits layer of a model with matrices of `types` in turn, without any bytes.

    Of a `part` every other matrix has the upper bits of its codes alone.
    """
    config = ModelConfig.uniform(
        family="llama", vocab_size=32000, num_layers=layers, norm_eps=1e-5, rope_theta=1e4, max_context=512,
        **SHAPES[shape],
    )  # fmt: skip
    q, kv, hidden, inner = (
        config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.hidden_size,
        config.intermediate_size,
    )  # fmt: skip
    sites = [[(q, hidden), (kv, hidden), (kv, hidden)], [(hidden, q)], [(inner, hidden)] * 2, [(hidden, inner)]]
    number = 0

    def matrix(outputs: int, inputs: int) -> Any:
        nonlocal number
        form = quant_form(types[number % len(types)])
        form = replace(form, hidden=form.bits - 4 if part and number % 2 else 0)
        number += 1
        tiles, steps = -(-outputs // 128), -(-inputs // 32)
        size = tiles * (-(-steps // form.span) * form.head_bytes + steps * (2048 + 512 * form.rest))
        return PackedQuant(form, outputs, inputs, SimpleNamespace(nbytes=size), None)

    blocks = [
        SimpleNamespace(linears=[SimpleNamespace(quant=tuple(matrix(*one) for one in site)) for site in sites])
        for _ in range(config.num_layers)
    ]
    return config, blocks, SimpleNamespace(quant=(matrix(config.vocab_size, hidden),))


def step_of(shape: str, *types: str, part: bool = False, layers: int = 2) -> tuple[QuantStep, ModelConfig]:
    config, blocks, head = model(shape, *types, part=part, layers=layers)
    mx = SimpleNamespace(zeros=lambda *_, **__: 0, eval=lambda *_: None, int32=None, uint32=None, float32=None)
    driver: Any = SimpleNamespace(multiprocessors=GRID)
    return QuantStep(mx, config, dtype="float16", layers=blocks, head=head, embeddings=None, driver=driver), config

"""The weights of the blocks of a model as the GPU runtime holds them, and loading them from a store.

One multiplication is in `weights`; what is done with a block is in `phases` and `step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.model.layers import Layer as LayerConfig
from specdec.runtimes.mlx.attention_ops import AttentionVectors
from specdec.runtimes.mlx.weights import Linear, Loader
from specdec.store.share import StoreShare

if TYPE_CHECKING:
    from specdec.model.architecture import ModelConfig
    from specdec.runtimes.share import Share
    from specdec.store import Store


@dataclass(slots=True)
class Mlp:
    """A gated MLP, or those of all experts of a mixture.

    Attributes:
        width: inner width.
        gate_up: the gate and up projections, joined.
        down: the down projection.
        bias: float32 (experts or 1, 2, width), of gates and of ups; or None.
        down_bias: float32 (hidden,), of experts (experts, hidden); or None.
    """

    width: int
    gate_up: Linear
    down: Linear
    bias: Any = None
    down_bias: Any = None

    @property
    def linears(self) -> list[Linear]:
        """The multiplications in order of use."""
        return [self.gate_up, self.down]

    @property
    def vectors(self) -> list[Any]:
        """Float32 arrays that there are."""
        return [array for array in (self.bias, self.down_bias) if array is not None]


@dataclass(slots=True)
class Mixture:
    """A mixture of experts.

    Attributes:
        router: float32 (experts, hidden).
        router_bias: float32 (experts,) or None.
        experts: the MLPs of all experts.
        shared: the MLP that every row uses in addition to them, or None.
    """

    router: Any
    router_bias: Any
    experts: Mlp
    shared: Mlp | None = None

    @property
    def linears(self) -> list[Linear]:
        """The multiplications in order of use."""
        return self.experts.linears + ([] if self.shared is None else self.shared.linears)

    @property
    def vectors(self) -> list[Any]:
        """Float32 arrays that there are."""
        own = [self.router] + ([] if self.router_bias is None else [self.router_bias])
        return own + self.experts.vectors + ([] if self.shared is None else self.shared.vectors)


@dataclass(slots=True)
class Layer:
    """One block. Norms are float32 arrays with the model's offset added, None where there is none.

    Attributes:
        config: of the block.
        qkv: the query, key and value projections, joined.
        o: the output projection.
        mlp: the MLP or mixture.
        gate: the projection of attention's gate, or None.
        attention: vectors of attention.
        o_bias: float32 (hidden,) or None.
        attn_norm: of what enters attention.
        attn_post: of what attention returns.
        mlp_norm: of what enters the MLP.
        mlp_post: of what that returns.
    """

    config: LayerConfig
    qkv: Linear
    o: Linear
    mlp: Mlp | Mixture
    gate: Linear | None = None
    attention: AttentionVectors = field(default_factory=AttentionVectors)
    o_bias: Any = None
    attn_norm: Any = None
    attn_post: Any = None
    mlp_norm: Any = None
    mlp_post: Any = None

    @property
    def linears(self) -> list[Linear]:
        """The multiplications in order of use."""
        gate = [] if self.gate is None else [self.gate]
        return [self.qkv, *gate, self.o, *self.mlp.linears]

    @property
    def vectors(self) -> list[Any]:
        """Float32 arrays that there are."""
        own = (self.attn_norm, self.o_bias, self.attn_post, self.mlp_norm, self.mlp_post)
        of_attention = (self.attention.bias, self.attention.norms, self.attention.sinks)
        return [array for array in (*own, *of_attention) if array is not None] + self.mlp.vectors


class LayerLoader:
    """Packs the blocks of a store.

    Args:
        mx: MLX.
        store: where they are.
        loader: packs matrices.
        share: what this device holds of a model that several devices divide; None for all.
    """

    def __init__(self, mx: Any, store: Store, loader: Loader, share: Share | None = None) -> None:
        self._mx, self._store, self._loader, self._share = mx, store, loader, share
        self._config: ModelConfig = store.config
        self._lengths, self._whole_shapes = self._config.vectors(), self._config.matrices()
        self._shapes = self._whole_shapes if share is None else share.shapes()
        self._read: set[str] = set()

    def layers(self) -> Iterator[Layer]:
        """Every block in order."""
        for number, config in enumerate(self._config.layers):
            yield self._layer(f"layers.{number}", config if self._share is None else self._own(number, config))

    def _own(self, number: int, config: LayerConfig) -> LayerConfig:
        """A block with this device's heads alone."""
        assert self._share is not None
        heads, kv_heads = self._share.heads(number), self._share.kv_heads(number)
        counts = {"heads": heads.stop - heads.start, "kv_heads": kv_heads.stop - kv_heads.start}
        return replace(config, attention=replace(config.attention, **counts))

    def final_norm(self) -> Any:
        """The norm before the logits layer.

        Raises:
            InvalidArgumentError: the model has vectors that no block has read; call this last.
        """
        found = self._vector("final_norm")
        if left := sorted(set(self._lengths) - self._read):
            raise InvalidArgumentError(f"the mlx runtime does not know what {left[0]} of this model is for")
        return found

    def linear(self, *names: str, paired: bool = False, experts: int = 0, used: int = 0) -> Linear:
        """A multiplication, its exact weights packed; the names of a mixture's are those of all experts."""
        joined = names if not experts else names[: len(names) // experts]
        outputs = tuple(self._shapes[name][0] for name in joined)
        whole = tuple(self._whole_shapes[name][0] for name in joined)
        made = Linear(names, outputs, self._shapes[names[0]][1], paired, experts, used, whole=whole)
        self._loader.exact(made)
        return made

    def _layer(self, base: str, config: LayerConfig) -> Layer:
        attn = f"{base}.attn"
        return Layer(
            config=config,
            attn_norm=self._vector(f"{base}.attn_norm"),
            qkv=self.linear(*(f"{attn}.{name}" for name in "qkv")),
            gate=self.linear(f"{attn}.gate") if config.attention.gate else None,
            attention=AttentionVectors(
                bias=self._vector(*(f"{attn}.{name}.bias" for name in "qkv")),
                norms=self._vector(f"{attn}.q_norm", f"{attn}.k_norm"),
                sinks=self._vector(f"{attn}.sinks"),
            ),
            o=self.linear(f"{attn}.o"),
            o_bias=self._vector(f"{attn}.o.bias", whole=True),
            attn_post=self._vector(f"{base}.attn_post_norm"),
            mlp_norm=self._vector(f"{base}.mlp_norm"),
            mlp=self._mixture(f"{base}.mlp", config) if config.mlp.experts else self._mlp(f"{base}.mlp"),
            mlp_post=self._vector(f"{base}.mlp_post_norm"),
        )

    def _mixture(self, base: str, config: LayerConfig) -> Mixture:
        router = np.asarray(self._store.table_rows(f"{base}.router"), np.float32)
        return Mixture(
            router=self._on_device(router),
            router_bias=self._vector(f"{base}.router.bias"),
            experts=self._mlp(
                *(f"{base}.experts.{number}" for number in range(config.mlp.experts)), used=config.mlp.experts_used
            ),
            shared=self._mlp(f"{base}.shared") if config.mlp.shared_width else None,
        )

    def _mlp(self, *names: str, used: int = 0) -> Mlp:
        """The MLP of that name, or those of a mixture of which each row uses `used`."""
        experts = len(names) if used else 0
        gate_up = self.linear(
            *(f"{name}.{part}" for name in names for part in ("gate", "up")), paired=True, experts=experts, used=used
        )
        width = gate_up.outputs[0]
        bias = self._vector(*(f"{name}.{part}.bias" for name in names for part in ("gate", "up")))
        # Experts are added up before their outputs are put together.
        down_bias = self._vector(*(f"{name}.down.bias" for name in names), whole=not used and "shared" not in names[0])
        if experts and down_bias is not None:
            down_bias = down_bias.reshape(experts, -1)
        return Mlp(
            width=width,
            gate_up=gate_up,
            down=self.linear(*(f"{name}.down" for name in names), experts=experts, used=used),
            bias=None if bias is None else bias.reshape(len(names), 2, width),
            down_bias=down_bias,
        )

    def _vector(self, *names: str, whole: bool = False) -> Any:
        """Vectors one after the other, norms with the model's offset; None where the model has not got them. Where they
        are `whole`, of all devices."""
        if names[0] not in self._lengths:
            return None
        self._read.update(names)
        offset = np.float32(self._config.norm_offset)
        store = self._store.whole if whole and isinstance(self._store, StoreShare) else self._store
        parts = [np.asarray(store.vector(name), np.float32) for name in names]
        shifted = [part + offset if name.endswith("_norm") else part for name, part in zip(names, parts, strict=True)]
        return self._on_device(np.concatenate(shifted))

    def _on_device(self, values: np.ndarray) -> Any:
        """A copy that the device made: kernels are slow on small arrays that came from the host."""
        array = self._mx.array(values)
        return array + self._mx.zeros_like(array)

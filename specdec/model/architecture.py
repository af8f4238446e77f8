"""What a transformer is, in the numbers that every runtime needs. Reading them from files lives in `sources`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from specdec.errors import ModelFormatError

ARCHITECTURES = ("llama", "mistral", "mixtral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder-only transformer with rotary positions, RMS norm and a gated SiLU MLP.

    Rotary layout is the half-split one of Hugging Face (dimension `j` pairs with `j + head_dim / 2`); sources convert.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        vocab_size: V, rows of the logits layer.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP (of one expert, if there are experts).
        num_layers: number of blocks.
        num_heads: query heads H.
        num_kv_heads: key-value heads K; divides H.
        head_dim: D; even.
        norm_eps: epsilon of every RMS norm.
        rope_theta: base of the rotary frequencies.
        rope_factors: D/2 divisors of the inverse frequencies (Llama-3 scaling), or None.
        max_context: longest context T that the model was made for, in tokens.
        sliding_window: a query at position p sees keys p - window + 1 .. p; None means all.
        first_sliding_layer: layers before this one see everything even when `sliding_window` is set.
        tie_embeddings: the logits layer is the embedding table.
        qkv_bias: q, k and v projections have a bias.
        qk_norm: queries and keys pass an RMS norm per head before the rotation.
        num_experts: 0, or the number of experts of a mixture MLP.
        experts_per_token: experts that each token uses.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_context: int
    rope_factors: tuple[float, ...] | None = None
    sliding_window: int | None = None
    first_sliding_layer: int = 0
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ModelFormatError(
                f"unknown architecture {self.architecture!r}: this version reads {', '.join(ARCHITECTURES)}"
            )
        sizes: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
        sizes += ("num_kv_heads", "head_dim", "max_context")
        for name in sizes:
            if not isinstance(getattr(self, name), int) or getattr(self, name) <= 0:
                raise ModelFormatError(f"{name} must be a positive whole number, not {getattr(self, name)!r}")
        if self.num_heads % self.num_kv_heads:
            raise ModelFormatError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ModelFormatError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ModelFormatError(f"rope_factors must hold {self.head_dim // 2} numbers, not {len(self.rope_factors)}")
        if self.num_experts and not 0 < self.experts_per_token <= self.num_experts:
            raise ModelFormatError(
                f"experts_per_token must be 1 to num_experts ({self.num_experts}), not {self.experts_per_token}"
            )

    def window(self, layer: int) -> int | None:
        """Sliding window of `layer` in tokens, or None when it sees the whole context."""
        return self.sliding_window if layer >= self.first_sliding_layer else None

    def mlp_names(self, layer: int) -> list[str]:
        """Prefixes of the gated MLPs of `layer`: one, or one per expert."""
        base = f"layers.{layer}.mlp"
        return [f"{base}.experts.{e}" for e in range(self.num_experts)] if self.num_experts else [base]

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Every matrix that takes part in effort, by canonical name, with its (out, in) shape, in order of use.

        Names: `layers.{i}.attn.{q,k,v,o}`, `layers.{i}.mlp.{gate,up,down}` (or `layers.{i}.mlp.experts.{e}.…`), `head`.
        """
        shapes: dict[str, tuple[int, int]] = {}
        q, kv, hidden = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.hidden_size
        for i in range(self.num_layers):
            attn = f"layers.{i}.attn"
            shapes |= {f"{attn}.q": (q, hidden), f"{attn}.k": (kv, hidden), f"{attn}.v": (kv, hidden)}
            shapes[f"{attn}.o"] = (hidden, q)
            for mlp in self.mlp_names(i):
                shapes |= {
                    f"{mlp}.gate": (self.intermediate_size, hidden),
                    f"{mlp}.up": (self.intermediate_size, hidden),
                    f"{mlp}.down": (hidden, self.intermediate_size),
                }
        shapes["head"] = (self.vocab_size, hidden)
        return shapes

    def tables(self) -> dict[str, tuple[int, int]]:
        """16-bit tensors outside effort by (rows, columns): `embed` unless tied, and `layers.{i}.mlp.router`."""
        tables = {} if self.tie_embeddings else {"embed": (self.vocab_size, self.hidden_size)}
        if self.num_experts:
            tables |= {f"layers.{i}.mlp.router": (self.num_experts, self.hidden_size) for i in range(self.num_layers)}
        return tables

    def vectors(self) -> dict[str, int]:
        """Float32 vectors and their lengths: norms, and q/k/v biases (`layers.{i}.attn.q.bias`) where there are any."""
        lengths: dict[str, int] = {}
        for i in range(self.num_layers):
            lengths |= {f"layers.{i}.attn_norm": self.hidden_size, f"layers.{i}.mlp_norm": self.hidden_size}
            if self.qk_norm:
                lengths |= {f"layers.{i}.attn.q_norm": self.head_dim, f"layers.{i}.attn.k_norm": self.head_dim}
            if self.qkv_bias:
                for name, heads in (("q", self.num_heads), ("k", self.num_kv_heads), ("v", self.num_kv_heads)):
                    lengths[f"layers.{i}.attn.{name}.bias"] = heads * self.head_dim
        lengths["final_norm"] = self.hidden_size
        return lengths

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores an equal object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from `to_dict` output.

        Raises:
            ModelFormatError: a key is missing or unknown, or a value is out of range.
        """
        values = dict(values)
        if values.get("rope_factors") is not None:
            values["rope_factors"] = tuple(float(x) for x in values["rope_factors"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ModelFormatError(f"model description does not fit this version: {error}") from None

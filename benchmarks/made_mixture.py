"""A mixture of experts made of a dense model's own weights: every MLP split by co-activation, with a fitted router.

python benchmarks/made_mixture.py MODEL FOLDER [--experts 16] [--used 12] [--shared 0]

What it writes is a made mixture, no trained one: every weight of its experts is one of the dense model's, and only the
routers are new. Neurons of an MLP that are active together become an expert (balanced clustering of the 10 % of neurons
that carry most for each token, as in MoEfication, 2110.01786, and CMoE, 2502.04416); those that are active most often
may become a shared expert. The router is fitted so that the weighted sum of the chosen experts comes nearest to the
dense MLP. Activations are those of the dense model on bundled prompts and its own greedy answers to them.

FOLDER is a Hugging Face folder of the family GraniteMoE, the one whose attention has the biases of Qwen2 and whose MLPs
are mixtures, with multipliers of 1. It says in its config.json what it was made of.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from specdec.kernels.reference.transformer import DenseTransformer

import specdec
from specdec.lab.bench.prompts import BUILT_IN, load_prompts
from specdec.model.loaded import Model
from specdec.tokenizers.meta import META_NAME, TokenizerMeta

MARKED = 0.1  # neurons of a token that count as active: those that carry most of its output
CLUSTER_ROUNDS, FIT_STEPS, FIT_RATE = 5, 60, 0.02
START = 0.2  # of a router: it ranks experts by the norm of their outputs, and weights them nearly alike
SEED = 0
MOST_CHARACTERS = 800  # of a prompt

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How an MLP is split.

    Attributes:
        experts: that rows choose among.
        used: experts of a row.
        shared: inner width of the expert that every row uses; 0 for none.
    """

    experts: int
    used: int
    shared: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.used <= self.experts or self.shared < 0:
            sys.exit(f"made_mixture: --used must be 1 to --experts ({self.experts}), and --shared at least 0")

    def width(self, neurons: int) -> int:
        """Inner width of each expert."""
        width, left = divmod(neurons - self.shared, self.experts)
        if left or width <= 0:
            sys.exit(f"made_mixture: {neurons - self.shared} neurons cannot be split into {self.experts} equal experts")
        return width


class Observed(DenseTransformer):
    """The dense model with products in float32, which are quick, and without a logits layer."""

    def _multiply(self, name: str, rows: NDArray[np.float64], *, bias: bool = False) -> NDArray[np.float64]:
        assert self.observe is not None
        self.observe(name, rows)
        if name == "head":
            return np.zeros((len(rows), 1))
        found = (rows.astype(np.float32) @ self.matrix(name).T).astype(np.float64)
        return found + self.vector(f"{name}.bias") if bias else found


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What enters a layer's MLP, (T, hidden), and its inner activations, (T, width)."""

    entering: Rows
    inner: Rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="dense model: catalogue name, store, folder or .gguf")
    parser.add_argument("folder", type=Path, help="where the mixture goes")
    parser.add_argument("--experts", type=int, default=16, help="experts of each layer (default 16)")
    parser.add_argument("--used", type=int, default=12, help="experts of each token (default 12)")
    parser.add_argument("--shared", type=int, default=0, help="inner width of a shared expert (default 0: none)")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of each kind to fit on (default 2)")
    parser.add_argument("--max-tokens", type=int, default=48, help="length of the answers to fit on (default 48)")
    args = parser.parse_args()
    split = Split(experts=args.experts, used=args.used, shared=args.shared)
    model = specdec.load(args.model, runtime="native")
    texts = answered(model, args.prompts, args.max_tokens)
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens", file=sys.stderr)
    write(model, args.folder, split, activations(model, texts))


def answered(model: Model, per_task: int, max_tokens: int) -> list[list[int]]:
    """Token ids of bundled prompts with the model's greedy answers."""
    assert model.tokenizer is not None
    prompts = []
    for prompt in load_prompts(BUILT_IN, per_task=per_task):
        assert isinstance(prompt.content, str)
        chat = model.tokenizer.apply_chat_template([{"role": "user", "content": prompt.content[:MOST_CHARACTERS]}])
        prompts.append(model.tokenizer.encode(chat))
    answers = specdec.generate(model, prompts, max_tokens=max_tokens, speculate=False)
    return [[*prompt, *answer.tokens] for prompt, answer in zip(prompts, answers, strict=True)]


def activations(model: Model, texts: Sequence[Sequence[int]]) -> list[LayerInputs]:
    """What every MLP of the dense model saw, without the first token of a text, whose activations are unlike others."""
    store, config = model.store, model.config
    held: dict[str, Any] = {}

    def matrix(name: str) -> Any:
        if name not in held:
            held[name] = store.exact(name).dequantise() if name in config.matrices() else store.table_rows(name)
        return held[name]

    seen: dict[str, list[Rows]] = {}

    def observe(name: str, rows: NDArray[np.float64]) -> None:
        if name.endswith((".mlp.gate", ".mlp.down")):
            seen.setdefault(name, []).append(rows[1:].astype(np.float32))

    dense = Observed(config, matrix, store.vector, observe=observe)
    for text in texts:
        dense.logits(text)
    joined = {name: np.concatenate(parts) for name, parts in seen.items()}
    layers = range(config.num_layers)
    return [LayerInputs(joined[f"layers.{i}.mlp.gate"], joined[f"layers.{i}.mlp.down"]) for i in layers]


def clusters(inner: Rows, lengths: Rows, split: Split) -> tuple[NDArray[np.intp], list[NDArray[np.intp]]]:
    """Neurons of the shared expert, and of the others.

    Args:
        inner: (T, N) activations.
        lengths: (N,) norms of the columns of the down projection: what a neuron's activation adds to the output.
        split: how many, and how large.
    """
    carried = np.abs(inner) * lengths
    marks = np.zeros_like(carried)
    most = np.argpartition(-carried, int(MARKED * carried.shape[1]), axis=1)[:, : int(MARKED * carried.shape[1])]
    np.put_along_axis(marks, most, 1, axis=1)
    by_rate = np.argsort(-marks.mean(axis=0), kind="stable")
    shared, rest = np.sort(by_rate[: split.shared]), np.sort(by_rate[split.shared :])
    features = marks[:, rest].T
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    owner = _balanced(features, split.experts, split.width(inner.shape[1]))
    return shared, [rest[owner == expert] for expert in range(split.experts)]


def _balanced(features: Rows, count: int, size: int) -> NDArray[np.intp]:
    """The cluster of every row, `size` rows each: k-means by cosine, the rows with the clearest choice first."""
    random = np.random.default_rng(SEED)
    centres = features[random.choice(len(features), count, replace=False)]
    owner = np.zeros(len(features), np.intp)
    for _ in range(CLUSTER_ROUNDS):
        near = features @ centres.T
        best = np.sort(near, axis=1)
        left = np.full(count, size)
        for row in np.argsort(best[:, -2] - best[:, -1], kind="stable"):
            owner[row] = np.argmax(np.where(left > 0, near[row], -np.inf))
            left[owner[row]] -= 1
        sums = np.stack([features[owner == one].sum(axis=0) for one in range(count)])
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return owner


def fitted_router(entering: Rows, outputs: Rows, used: int) -> tuple[Rows, float]:
    """The router, (experts, hidden), whose choice and weights bring `used` times the weighted sum of experts nearest to
    the sum of all; and the mean relative error of that.

    Args:
        entering: (T, hidden).
        outputs: (T, experts, hidden), of each expert.
        used: experts of a row.
    """
    products = np.einsum("teh,tfh->tef", outputs, outputs)
    products = products / np.maximum(products.sum(axis=(1, 2), keepdims=True), 1e-9)
    sizes = np.log(np.maximum(np.einsum("tee->te", products), 1e-9)) / 2
    sizes = sizes - sizes.mean(axis=1, keepdims=True)
    scale = entering.std(axis=0) + 1e-3
    inputs = entering / scale
    kernel = inputs.T @ inputs + 0.05 * len(inputs) * np.eye(inputs.shape[1], dtype=np.float32)
    router = mx.array(START * np.linalg.solve(kernel, inputs.T @ sizes).T.astype(np.float32))
    rows, gram = mx.array(inputs), mx.array(products.astype(np.float32))

    def error(router: Any) -> Any:
        logits = rows @ router.T
        least = mx.sort(mx.stop_gradient(logits), axis=1)[:, -used][:, None]
        weights = mx.softmax(mx.where(logits >= least, logits, -1e9), axis=1)
        missing = used * weights - 1
        return mx.mean(mx.sum((missing[:, None] @ gram)[:, 0] * missing, axis=1))

    optimizer, step = optim.AdamW(learning_rate=FIT_RATE, weight_decay=0.01), mx.value_and_grad(error)
    best, kept = float(error(router)), router
    for _ in range(FIT_STEPS):
        loss, gradient = step(router)
        if float(loss) < best:
            best, kept = float(loss), router
        router = optimizer.apply_gradients({"router": gradient}, {"router": router})["router"]
    return np.array(kept) / scale, best**0.5


def write(model: Model, folder: Path, split: Split, seen: Sequence[LayerInputs]) -> None:
    """Write the mixture."""
    config, store = model.config, model.store
    first = config.layers[0]
    if config.family != "qwen2" or any(layer.mlp.experts for layer in config.layers):
        sys.exit("made_mixture: only dense models of the family qwen2 can be split")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": _half(store.exact("head").dequantise())}
    if not config.tied:
        tensors = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
        tensors["model.embed_tokens.weight"] = _half(store.table_rows("embed"))
    tensors["model.norm.weight"] = np.asarray(store.vector("final_norm"), np.float32)
    errors = []
    for number in range(config.num_layers):
        tensors |= _attention(model, number)
        mixture, error = _mixture(model, number, split, seen[number])
        tensors |= mixture
        errors.append(error)
        print(f"layer {number}: relative error {error:.3f}", file=sys.stderr)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = {
        "architectures": ["GraniteMoeSharedForCausalLM" if split.shared else "GraniteMoeForCausalLM"],
        "model_type": "granitemoeshared" if split.shared else "granitemoe",
        "made_of": f"{model.store.source.get('name', 'a dense model')}: MLPs split by co-activation, routers fitted",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": split.width(first.mlp.width),
        "shared_intermediate_size": split.shared,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": first.attention.heads,
        "num_key_value_heads": first.attention.kv_heads,
        "num_local_experts": split.experts,
        "num_experts_per_tok": split.used,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.eps,
        "rope_theta": first.attention.rope.theta,
        "hidden_act": "silu",
        "attention_bias": True,
        "attention_multiplier": first.attention.score_scale,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n")
    (folder / "made.json").write_text(json.dumps({"split": asdict(split), "relative_errors": errors}, indent=1) + "\n")
    _write_tokenizer(model, folder)


def _half(values: Any) -> NDArray[np.float16]:
    return np.ascontiguousarray(values, np.float16)


def _attention(model: Model, number: int) -> dict[str, Any]:
    """Norms and attention of a layer, with an output bias of zeros, which GraniteMoE's biases include."""
    store, ours, theirs = model.store, f"layers.{number}", f"model.layers.{number}"
    found: dict[str, Any] = {}
    for name in "qkvo":
        matrix = store.exact(f"{ours}.attn.{name}").dequantise()
        bias = np.zeros(len(matrix)) if name == "o" else store.vector(f"{ours}.attn.{name}.bias")
        found[f"{theirs}.self_attn.{name}_proj.weight"] = _half(matrix)
        found[f"{theirs}.self_attn.{name}_proj.bias"] = np.asarray(bias, np.float32)
    for name, norm in (("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        found[f"{theirs}.{norm}.weight"] = np.asarray(store.vector(f"{ours}.{name}"), np.float32)
    return found


def _mixture(model: Model, number: int, split: Split, seen: LayerInputs) -> tuple[dict[str, Any], float]:
    """The split MLP of a layer, and the relative error of its output on the activations that it was fitted on."""
    name, theirs = f"layers.{number}.mlp", f"model.layers.{number}"
    gate, up, down = (np.asarray(model.store.exact(f"{name}.{part}").dequantise()) for part in ("gate", "up", "down"))
    shared, groups = clusters(seen.inner, np.linalg.norm(down, axis=0), split)
    outputs = np.stack([seen.inner[:, group] @ down[:, group].T for group in groups], axis=1)
    router, error = fitted_router(seen.entering, outputs, split.used)
    moe = f"{theirs}.block_sparse_moe"
    found = {
        f"{moe}.router.layer.weight": _half(router),
        f"{moe}.input_linear.weight": _half(np.stack([np.concatenate([gate[g], up[g]]) for g in groups])),
        # The weights of the chosen experts sum to 1, and the experts of a dense MLP are summed up.
        f"{moe}.output_linear.weight": _half(np.stack([split.used * down[:, g] for g in groups])),
    }
    if split.shared:
        found[f"{theirs}.shared_mlp.input_linear.weight"] = _half(np.concatenate([gate[shared], up[shared]]))
        found[f"{theirs}.shared_mlp.output_linear.weight"] = _half(down[:, shared])
    return found, error


def _write_tokenizer(model: Model, folder: Path) -> None:
    held = model.store.tokenizer_path
    meta = TokenizerMeta.from_bytes((held / META_NAME).read_bytes())
    (folder / "tokenizer.json").write_bytes((held / "tokenizer.json").read_bytes())
    settings = {"chat_template": meta.chat_template, **meta.special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    eos = {"bos_token_id": meta.bos_id, "eos_token_id": list(meta.eos_ids)}
    (folder / "generation_config.json").write_text(json.dumps(eos) + "\n")


if __name__ == "__main__":
    main()

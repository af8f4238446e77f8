"""Training of a fast feedforward layer on examples. Inputs are normalised while training; the weights that come out
take them as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.checks import check_count, check_number
from specdec.errors import InvalidArgumentError, ModelOutputError
from specdec.fff.data import Examples, checked
from specdec.fff.weights import Activation, TreeWeights

MOST_CLASSES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train.

    Attributes:
        depth: choices on the way to a leaf.
        leaf_width: neurons of a leaf.
        trees: side by side.
        activation: of leaves, and of nodes that add to the output.
        node_outputs: nodes on the path add to the output.
        epochs: passes over the training rows.
        batch: rows of a step.
        rate: of Adam, with a cosine down to 0.
        hardening: weight of the hardening loss at the end; it rises from 0.
        firm: share of the epochs, the last ones, that train the leaves with hard choices, as they will be used.
        region_leak: chance that a choice is swapped while training.
        weight_decay: of AdamW.
        noise: standard deviation of normal noise on normalised inputs.
        test: share of the rows that are kept for the test.
        seed: of initial values, order, split and noise.

    Raises:
        InvalidArgumentError: a number is out of range.
    """

    depth: int = 3
    leaf_width: int = 8
    trees: int = 1
    activation: Activation = "relu"
    node_outputs: bool = False
    epochs: int = 60
    batch: int = 128
    rate: float = 3e-3
    hardening: float = 3.0
    firm: float = 0.5
    region_leak: float = 0.0
    weight_decay: float = 0.01
    noise: float = 0.0
    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("seed", 0)):
            _set(self, name, check_count(name, getattr(self, name), least=least))
        if self.seed >= 2**64:
            raise InvalidArgumentError(f"seed must be below 2**64, not {self.seed}")
        for name, high in (
            ("rate", math.inf), ("hardening", math.inf), ("weight_decay", math.inf), ("noise", math.inf),
            ("region_leak", 1), ("firm", 1), ("test", 1),
        ):  # fmt: skip
            _set(self, name, check_number(name, getattr(self, name), 0, high))
        if self.test == 1:
            raise InvalidArgumentError("test must be a share from 0 to below 1: nothing would be left to train on")


def _set(options: TrainOptions, name: str, value: float) -> None:
    """Set a checked value, a number of Python's."""
    object.__setattr__(options, name, value)


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training run.

    Attributes:
        weights: of the layer, for inputs as they were given.
        classes: what output j stands for; empty for regression.
        train_score: of hard choices on the rows trained on: share of right classes, or R^2 over all outputs.
        test_score: the same on rows that were not; None if none were kept.
        soft_score: of soft choices with the final weights on the same rows as `test_score`, or else `train_score`.
        entropy: mean entropy of the choices at the end, in nats; 0.69 is undecided.
    """

    weights: TreeWeights
    classes: tuple[int, ...]
    train_score: float
    test_score: float | None
    soft_score: float
    entropy: float


Progress = Callable[[int, float, float], None]  # epoch, loss, entropy


def train(examples: Examples, options: TrainOptions | None = None, *, progress: Progress | None = None) -> Trained:
    """Train a layer: cross-entropy for classes, squared error otherwise, plus the hardening loss.

    Args:
        examples: see `specdec.fff.data`.
        options: how; the defaults if None.
        progress: called after every epoch.

    Raises:
        InvalidArgumentError: x and y are not finite numbers of the same rows, or there are too few of them, or too
            many classes.
        ModelOutputError: the loss became infinite or no number.

    Source: arXiv 2308.14711, section 3; Adam, arXiv 1412.6980.
    """
    import mlx.core as mx

    from specdec.fff.module import FastFeedforward

    options = options or TrainOptions()
    rng = np.random.default_rng(options.seed)
    mx.random.seed(options.seed)
    examples = checked("examples", np.asarray(examples.x), np.asarray(examples.y), not examples.classifies)
    targets, classes = _targets(examples)
    train_rows, test_rows = _split(len(examples.x), options.test, rng)
    shift, scale = _normalisation(examples.x[train_rows])
    x = ((examples.x - shift) * scale).astype(np.float32)
    outputs = len(classes) if classes else targets.shape[1]
    layer = FastFeedforward(
        x.shape[1], outputs, depth=options.depth, leaf_width=options.leaf_width, trees=options.trees,
        activation=options.activation, node_outputs=options.node_outputs, region_leak=options.region_leak,
    )  # fmt: skip
    y_shift, y_scale = (0.0, 1.0) if classes else _normalisation(targets[train_rows])
    y = targets if classes else ((targets - y_shift) * y_scale).astype(np.float32)
    entropy = _steps(layer, x[train_rows], y[train_rows], bool(classes), options, rng, progress)
    layer.eval()
    layer.choices = "soft"
    judged = test_rows if len(test_rows) else train_rows
    soft = _in_parts(lambda rows: layer.mixed(rows)[0], x[judged])
    hard = {name: _in_parts(layer.hard, x[rows]) for name, rows in (("train", train_rows), ("test", test_rows))}
    weights = layer.harden().scaled(shift, scale)
    return Trained(
        weights if classes else _unscaled(weights, y_shift, y_scale),
        classes,
        score(hard["train"], y[train_rows], bool(classes)),
        score(hard["test"], y[test_rows], bool(classes)) if len(test_rows) else None,
        score(soft, y[judged], bool(classes)),
        entropy,
    )


def score(found: NDArray[Any], wanted: NDArray[Any], classifies: bool) -> float:
    """Share of right classes, or R^2: 1 less the squared error over the squared error of the mean."""
    if classifies:
        return float((found.argmax(axis=1) == wanted).mean())
    around = np.square(wanted - wanted.mean(axis=0), dtype=np.float64).sum()
    return float(1 - np.square(found - wanted, dtype=np.float64).sum() / around) if around else 0.0


def _steps(
    layer: Any, x: NDArray[Any], y: NDArray[Any], classifies: bool, options: TrainOptions,
    rng: np.random.Generator, progress: Progress | None,
) -> float:  # fmt: skip
    """Train `layer`; returns the mean entropy of the last epoch."""
    import mlx.core as mx
    import mlx.optimizers as optim

    from specdec.fff.module import hardening_loss, nn

    def loss(one: Any, rows: Any, wanted: Any, hardening: float) -> Any:
        found, entropies = one.mixed(rows)
        entropy = hardening_loss(entropies)
        if classifies:
            return nn.losses.cross_entropy(found, wanted, reduction="mean") + hardening * entropy, entropy
        return mx.square(found - wanted).mean() + hardening * entropy, entropy

    batches = -(-len(x) // options.batch)
    total = options.epochs * batches
    optimiser = optim.AdamW(optim.cosine_decay(options.rate, total), weight_decay=options.weight_decay)
    step, mean_entropy = nn.value_and_grad(layer, loss), 0.0
    for epoch in range(options.epochs):
        layer.choices = "hard" if epoch >= (1 - options.firm) * options.epochs else "soft"
        order, losses, entropies = rng.permutation(len(x)), list[Any](), list[Any]()
        for chosen in np.array_split(order, batches):
            rows = x[chosen]
            if options.noise:
                rows = rows + rng.normal(scale=options.noise, size=rows.shape).astype(np.float32)
            weight = options.hardening * (epoch + 1) / options.epochs
            (value, entropy), grads = step(layer, mx.array(rows), mx.array(y[chosen]), weight)
            optimiser.update(layer, grads)
            mx.eval(layer.parameters(), optimiser.state, value, entropy)
            losses.append(value.item())
            entropies.append(entropy.item())
        if not np.isfinite(losses).all():
            raise ModelOutputError(
                f"the loss is not a number after {epoch + 1} epochs: try a lower rate than {options.rate:g}"
            )
        mean_entropy = float(np.mean(entropies))
        if progress is not None:
            progress(epoch + 1, float(np.mean(losses)), mean_entropy)
    return mean_entropy


def _targets(examples: Examples) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Numbers of classes (n,) with the classes, or values (n, out)."""
    if not examples.classifies:
        return examples.y, ()
    classes, numbers = np.unique(examples.y, return_inverse=True)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InvalidArgumentError(f"y must have 2 to {MOST_CLASSES} classes, not {len(classes)}")
    return numbers.astype(np.int32), tuple(int(one) for one in classes)


def _split(count: int, share: float, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    order = rng.permutation(count)
    kept = round(share * count)
    if count - kept < 2:
        raise InvalidArgumentError(f"training needs 2 rows or more, and {count - kept} of {count} are left for it")
    return order[kept:], order[:kept]


def _normalisation(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What to subtract from each column and to multiply it by; a column that never changes becomes 0."""
    deviation = x.std(axis=0, dtype=np.float64)
    return x.mean(axis=0, dtype=np.float64), np.divide(
        1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0
    )


def _unscaled(weights: TreeWeights, shift: Any, scale: Any) -> TreeWeights:
    """Weights whose outputs are in the units of the targets."""
    spread = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    arrays = {
        name: (array * spread if name in ("output_weight", "output_bias", "node_output") else array)
        for name, array in weights.arrays().items()
    }
    arrays["output_bias"] = arrays["output_bias"] + shift / weights.trees
    return weights.replaced({name: array.astype(np.float32) for name, array in arrays.items()})


def _in_parts(run: Callable[[Any], Any], x: NDArray[Any], rows: int = 4096) -> NDArray[Any]:
    import mlx.core as mx

    parts = [np.array(run(mx.array(x[start : start + rows]))) for start in range(0, len(x), rows)]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

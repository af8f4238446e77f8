"""`specdec fff`: trains, tests, describes and converts fast feedforward layers. The layers are `specdec.fff`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples
from specdec.cli.output import STANDARD_OUTPUT, add_json_option, check_json, check_outputs, write_json_output
from specdec.errors import InvalidArgumentError, LayerFileError

_ACTIVATIONS = ("relu", "gelu", "silu", "none")
_DATA = "digits (comes with specdec), or a .npz with arrays x and y, or a .csv whose last column is y"


def add_parser(subparsers: Subparsers) -> None:
    """Add `fff` to the command line."""
    parser = subparsers.add_parser(
        "fff",
        help=COMMANDS["fff"],
        description="Fast feedforward layers: a binary tree chooses a few neurons of many.",
        **examples(
            "specdec fff train digits --out digits.safetensors",
            "specdec fff eval digits.safetensors digits",
            "specdec fff info digits.safetensors",
        ),
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_train(actions)
    _add_eval(actions)
    _add_info(actions)
    _add_convert(actions)


def _add_train(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "train",
        help="train a layer on examples",
        description="Train a layer with soft choices and a hardening loss, and write it for hard inference.",
    )
    parser.add_argument("data", metavar="DATA", help=_DATA)
    parser.add_argument("--out", required=True, metavar="FILE", help="file of the layer, replaced if it exists")
    parser.add_argument("--regress", action="store_true", help="y is a value to approximate, not a class")
    numbers: tuple[tuple[str, Any, Any, str, str], ...] = (
        ("--depth", int, 3, "D", "choices on the way to a leaf; there are 2^D leaves"),
        ("--leaf-width", int, 8, "N", "neurons of a leaf"),
        ("--trees", int, 1, "N", "trees side by side"),
        ("--epochs", int, 60, "N", "passes over the rows"),
        ("--batch", int, 128, "N", "rows of a step"),
        ("--rate", float, 3e-3, "R", "learning rate"),
        ("--hardening", float, 3.0, "W", "weight of the hardening loss at the end"),
        ("--firm", float, 0.5, "SHARE", "share of the epochs, the last ones, with hard choices"),
        ("--region-leak", float, 0.0, "P", "chance that a choice is swapped while training"),
        ("--weight-decay", float, 0.01, "W", "weight decay"),
        ("--noise", float, 0.0, "S", "standard deviation of noise on the normalised inputs"),
        ("--test", float, 0.2, "SHARE", "share of the rows kept for the test"),
        ("--seed", int, 0, "N", "random seed"),
    )
    for name, kind, default, metavar, text in numbers:
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default:g})")
    parser.add_argument("--activation", default="relu", choices=_ACTIVATIONS, help="of the neurons (default: relu)")
    parser.add_argument("--node-outputs", action="store_true", help="nodes on the path add to the output")
    parser.add_argument("--half", action="store_true", help="write float16 weights")
    add_json_option(parser)
    parser.set_defaults(run=train)


def _add_eval(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "eval",
        help="test a layer on examples",
        description="Run a layer on examples with hard choices, by the native kernels.",
    )
    parser.add_argument("layer", metavar="FILE", help="file that `specdec fff train` or `convert` wrote")
    parser.add_argument("data", metavar="DATA", help=_DATA)
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: all cores)")
    parser.add_argument("--out", metavar="FILE", help="write outputs and leaves to FILE, a .npz")
    add_json_option(parser)
    parser.set_defaults(run=evaluate)


def _add_info(actions: Subparsers) -> None:
    parser = actions.add_parser("info", help="describe a layer", description="Describe the layer in a file.")
    parser.add_argument("layer", metavar="FILE", help="file that `specdec fff train` or `convert` wrote")
    add_json_option(parser)
    parser.set_defaults(run=info)


def _add_convert(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "convert",
        help="convert a layer of the fastfeedforward package",
        description="Convert the state_dict of a layer of the fastfeedforward package, saved as safetensors.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a .safetensors file with the layer's state_dict")
    parser.add_argument("--out", required=True, metavar="FILE", help="file of the layer, replaced if it exists")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="what stands before the names of the arrays")
    parser.add_argument("--activation", default="relu", choices=_ACTIVATIONS, help="of the layer (default: relu)")
    parser.add_argument(
        "--no-output-bias", action="store_true", help="leave b2s out, as the package's evaluation mode does"
    )
    add_json_option(parser)
    parser.set_defaults(run=convert)


def train(arguments: argparse.Namespace) -> int:
    """Train a layer and write it."""
    from specdec.fff import TrainOptions, save_layer
    from specdec.fff import train as train_layer
    from specdec.fff.data import read_examples

    check_outputs(arguments)
    names = (
        "depth leaf_width trees epochs batch rate hardening firm region_leak weight_decay noise test seed activation"
    )
    options = TrainOptions(**{name: getattr(arguments, name) for name in [*names.split(), "node_outputs"]})
    found = read_examples(arguments.data, regress=arguments.regress)
    start = time.perf_counter()
    result = train_layer(found, options, progress=_progress(options.epochs))
    seconds = time.perf_counter() - start
    weights = result.weights.astype("float16") if arguments.half else result.weights
    notes = {"classes": ",".join(map(str, result.classes)), "trained_on": Path(arguments.data).name}
    save_layer(arguments.out, weights, notes=notes)
    report = _described(weights) | {
        "task": "classify" if result.classes else "regress",
        "train_score": result.train_score,
        "test_score": result.test_score,
        "soft_score": result.soft_score,
        "entropy": result.entropy,
        "train_s": seconds,
    }
    write_json_output(arguments, report)
    if arguments.json != STANDARD_OUTPUT:
        measure = "accuracy" if result.classes else "R^2"
        tested = "" if result.test_score is None else f", {result.test_score:.4f} on rows kept for the test"
        print(f"{measure} with hard choices: {result.train_score:.4f} on rows trained on{tested}")
        print(
            f"{measure} with soft choices: {result.soft_score:.4f}; mean entropy of choices: {result.entropy:.3f} nats"
        )
        print(f"{arguments.out}: {_sentence(weights)}; trained in {seconds:.1f} s")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Run a layer on examples and print its score."""
    import numpy as np

    from specdec.fff import HardFeedforward, load_layer, load_notes
    from specdec.fff.data import read_examples
    from specdec.fff.training import score
    from specdec.whole_file import whole_file

    check_outputs(arguments)
    weights, notes = load_layer(arguments.layer), load_notes(arguments.layer)
    found = read_examples(arguments.data, regress=notes.get("classes") == "" or weights.outputs == 1)
    classes = _classes(arguments.layer, notes, weights.outputs) if found.classifies else ()
    wanted = _wanted(arguments, weights, found, classes, trained=bool(notes.get("classes")))
    layer = HardFeedforward(weights, threads=arguments.threads)
    start = time.perf_counter()
    outputs = layer(found.x)
    seconds = time.perf_counter() - start
    leaves = layer.leaves(found.x)
    value = score(outputs, wanted, bool(classes))
    if arguments.out is not None:
        with whole_file(Path(arguments.out)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, outputs=outputs, leaves=leaves)
    used = [int(np.unique(leaves[:, tree]).size) for tree in range(weights.trees)]
    write_json_output(arguments, {"score": value, "rows": len(outputs), "leaves_used": used, "run_s": seconds})
    if arguments.json != STANDARD_OUTPUT:
        print(f"{'accuracy' if classes else 'R^2'}: {value:.4f} of {len(outputs)} rows, in {seconds * 1e3:.1f} ms")
        print(f"leaves that a row reached: {', '.join(map(str, used))} of {weights.leaves}")
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Describe a layer."""
    from specdec.fff import load_layer, load_notes

    check_json(arguments)
    weights, notes = load_layer(arguments.layer), load_notes(arguments.layer)
    write_json_output(arguments, _described(weights) | {"notes": notes})
    if arguments.json != STANDARD_OUTPUT:
        print(f"{arguments.layer}: {_sentence(weights)}")
        for name, text in sorted(notes.items()):
            print(f"{name}: {text}")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Convert a layer of the fastfeedforward package."""
    from specdec.fff import from_fastfeedforward, save_layer
    from specdec.fff.files import read_tensors

    check_outputs(arguments)
    weights = from_fastfeedforward(
        read_tensors(arguments.source)[0],
        activation=arguments.activation,
        prefix=arguments.prefix,
        output_bias=not arguments.no_output_bias,
    )
    save_layer(arguments.out, weights)
    write_json_output(arguments, _described(weights))
    if arguments.json != STANDARD_OUTPUT:
        print(f"{arguments.out}: {_sentence(weights)}")
    return 0


def _wanted(arguments: argparse.Namespace, weights: Any, found: Any, classes: tuple[int, ...], *, trained: bool) -> Any:
    """Numbers of outputs (n,) by class, or values (n, out), after checks that the data fits the layer."""
    import numpy as np

    if found.x.shape[1] != weights.inputs:
        raise InvalidArgumentError(
            f"{arguments.layer} takes rows of {weights.inputs} numbers, and {arguments.data} has {found.x.shape[1]}"
        )
    if not classes:
        if trained:
            raise InvalidArgumentError(
                f"{arguments.layer} was trained on classes: y must name classes, in whole numbers"
            )
        values = found.y.reshape(len(found.y), -1)
        if values.shape[1] != weights.outputs:
            raise InvalidArgumentError(
                f"{arguments.layer} gives {weights.outputs} numbers, and y has {values.shape[1]}"
            )
        return values
    if unknown := sorted(set(found.y.tolist()) - set(classes)):
        raise InvalidArgumentError(f"{arguments.data} holds the class {unknown[0]}, which the layer was not trained on")
    return np.searchsorted(np.array(classes), found.y)


def _classes(path: str, notes: dict[str, str], outputs: int) -> tuple[int, ...]:
    """The classes that a layer was trained on; 0, 1, 2, … for a layer that was converted."""
    text = notes.get("classes")
    if text is None:
        return tuple(range(outputs))
    try:
        classes = tuple(int(one) for one in text.split(","))
    except ValueError:
        classes = ()
    if len(classes) != outputs or list(classes) != sorted(set(classes)):
        raise LayerFileError(f"{path} is damaged: its classes are not {outputs} rising whole numbers")
    return classes


def _progress(epochs: int) -> Any:
    """Prints a line of progress, where a person watches."""
    if not sys.stderr.isatty():
        return None

    def show(epoch: int, loss: float, entropy: float) -> None:
        end = "\n" if epoch == epochs else "\r"
        text = f"epoch {epoch} of {epochs}: loss {loss:.4f}, entropy {entropy:.3f}   "
        print(text, end=end, file=sys.stderr, flush=True)

    return show


def _described(weights: Any) -> dict[str, Any]:
    names = "inputs outputs depth leaf_width trees activation neurons neurons_used multiplications"
    return {name: getattr(weights, name) for name in names.split()} | {
        "node_outputs": weights.node_output is not None,
        "dtype": str(weights.hidden_weight.dtype),
        "bytes": weights.nbytes,
    }


def _sentence(weights: Any) -> str:
    trees = f"{weights.trees} trees" if weights.trees > 1 else "1 tree"
    return (
        f"{weights.inputs} -> {weights.outputs}, {trees} of depth {weights.depth} with leaves of {weights.leaf_width} "
        f"{weights.activation} neurons; a row uses {weights.neurons_used} of {weights.neurons} neurons and "
        f"{weights.multiplications} multiplications; {weights.hidden_weight.dtype}, {weights.nbytes / 1e6:.2f} MB"
    )

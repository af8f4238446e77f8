"""The commands of `specdec`: names, and what each does in a line. Their options are in the modules of these names."""

from __future__ import annotations

# Each is a module of this package with `add_parser(subparsers)`, which sets `run` to a function of the parsed
# arguments that returns the exit code. A new subcommand is one file and one line here.
COMMANDS = {
    "generate": "answer a prompt",
    "chat": "talk with a model",
    "convert": "convert a model into a store",
    "inspect": "describe and check a store",
    "pull": "download a model and convert it",
    "list": "list models in the cache folder: sizes, places, origins",
    "rm": "remove models from the cache folder",
    "tune": "find the efforts that draft fastest with a model on this machine",
    "bench": "measure speed and acceptance against plain decoding",
    "eval": "measure what a lower effort costs in quality",
    "doctor": "show what this machine has, and which runtime would be used",
    "serve": "answer requests over HTTP",
    "search": "build and query an index of vectors",
    "fff": "train and use a fast feedforward layer",
    "launch": "run a command in several processes that share its model",
}

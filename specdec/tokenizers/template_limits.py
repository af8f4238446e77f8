"""Bounds on the work and the output of a chat template: `BoundedEnvironment`, Jinja's sandbox with a budget.

A template is a program that came with a model. Jinja's sandbox keeps it from the interpreter, and here everything that
could take long or much memory is counted: passes of loops, calls of macros, and the size of what goes into and comes
out of each operator, filter, test, call and output. Sizes are checked before an operation that multiplies them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_SOURCE_CHARS = 1 << 17  # the longest templates have a fifth of it
MOST_NESTED = 60
# Characters and list entries that pass through operations, and 20 for each pass of a loop; and characters of one value.
# The second numbers are for each character of the messages, so that long chats have what they need.
MOST_WORK, WORK_PER_CHAR = 40_000_000, 40
MOST_VALUE, VALUE_PER_CHAR = 4 << 20, 2
_MOST_COUNT = 100_000  # a whole number that says how much an operation makes
_STEP, _ENTRY, _CALL = 20, 8, 500
_WIDTH = re.compile(r"\d{5,}|\*")
# Those that can make much from little by a number or by repeating one text inside another.
_MULTIPLYING = ("replace", "join", "translate", "format", "format_map", "expandtabs", "indent", "wordwrap", "xmlattr")


class TemplateWorkError(Exception):
    """A template exceeded its budget."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox for chat templates. `start` gives a rendering its budget."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, **options: Any) -> None:
        self.start(0)
        super().__init__(**options, finalize=self._finalized, optimized=False)
        for table in (self.filters, self.tests):
            for name, function in list(table.items()):
                table[name] = self.bounded(function, name)
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)
        self.globals["range"] = self._range

    def start(self, size: int) -> None:
        """Begin a rendering with the whole budget.

        Args:
            size: characters of the messages and variables.
        """
        self._left = MOST_WORK + WORK_PER_CHAR * size
        self._most_value = MOST_VALUE + VALUE_PER_CHAR * size

    def bounded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A filter, test or global with its work counted; what Jinja marks on a function stays marked."""

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            return self._measured(functools.partial(function, *arguments, **named), name, arguments, named)

        return run

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """A call in a template."""
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        owners = (owner,) if isinstance(owner, (str, bytes, list, tuple, dict)) else ()
        call = functools.partial(super().call, context, function, *arguments, **named)
        is_call = name not in _MULTIPLYING
        return self._measured(call, name, (*owners, *arguments), named, is_call=is_call)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator in a template."""
        sizes = tuple(self._charge(value, deep=operator == "%") for value in (left, right))
        if operator == "*":
            for count, size, other in ((left, sizes[1], right), (right, sizes[0], left)):
                if isinstance(count, int) and not isinstance(other, (int, float)):
                    self._check_size(size * max(count, 0))
        if operator in ("*", "**") and all(isinstance(one, int) for one in (left, right)):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > 4096:
                raise TemplateWorkError("a number grows too large")
        if operator == "%" and isinstance(left, str):
            self._check_format(left, sizes[1])
        result = super().call_binop(context, operator, left, right)
        self._charge(result)
        return result

    def concat(self, parts: Iterable[Any]) -> str:  # type: ignore[override]
        """What Jinja joins the pieces of a block, a macro or the whole output with."""
        pieces = list[str]()
        for part in parts:
            self._spend(len(part) + 1)
            pieces.append(part)
        self._check_size(sum(map(len, pieces)))
        return "".join(pieces)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_SOURCE_CHARS:
            raise jinja2.TemplateSyntaxError("it is too long", 1)
        template = super()._parse(source, name, filename)
        _check_depth(template)
        template = cast("nodes.Template", _Counts().visit(template))
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "specdec_passes", [], [], None, None)
        for macro in template.find_all((nodes.Macro, nodes.CallBlock)):
            cast("nodes.Macro", macro).body.insert(
                0, nodes.ExprStmt(nodes.Filter(nodes.Const(1), "specdec_step", [], [], None, None))
            )
        return template

    def _passes(self, values: Any) -> Any:
        """What a loop runs over, each pass counted; loops over a mapping's keys or a text see them."""
        if isinstance(values, (list, tuple, str, Mapping, range)):
            self._spend(_STEP * len(values))
            return values
        return self._counted(values)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._spend(_STEP)
            yield value

    def _joined(self, values: list[Any]) -> str:
        """What `~` makes of its operands."""
        self._charge(values)
        texts = [str(value) for value in values]
        self._check_size(sum(map(len, texts)))
        return "".join(texts)

    def _step(self, value: Any) -> Any:
        self._spend(_CALL)
        return value

    def _range(self, *arguments: Any) -> range:
        values = range(*arguments)
        if len(values) > _MOST_COUNT:
            raise TemplateWorkError("a range is too long")
        return values

    def _finalized(self, value: Any) -> Any:
        self._charge(value)
        return value

    def _measured(
        self,
        call: Callable[[], Any],
        name: str,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        *,
        is_call: bool = False,
    ) -> Any:
        values = (*arguments, *named.values())
        self._spend(_STEP)
        deep = name not in _STRUCTURAL and not is_call
        sizes = [self._charge(value, deep=deep) for value in values if not isinstance(value, _JINJA)]
        if name not in ("tojson", "abs", "int", "float", "round", "string", "strftime_now") and any(
            isinstance(value, int) and abs(value) > _MOST_COUNT for value in values[1:] or values
        ):
            raise TemplateWorkError("a count is too large")
        if name in _MULTIPLYING and sizes:
            self._check_size((max(sizes) + 1) * sum(sizes))
        if "format" in name:
            for value in values:
                if isinstance(value, str):
                    self._check_format(value, sum(sizes))
        result = call()
        self._charge(result)
        return result

    def _check_format(self, layout: str, size: int) -> None:
        if _WIDTH.search(layout) is not None:
            raise TemplateWorkError("the width of a format is too large")
        self._check_size((layout.count("{") + layout.count("%")) * size)

    def _charge(self, value: Any, *, deep: bool = True) -> int:
        """Count the size of a value: characters of a text, entries of a container, `deep` through all its levels.

        A container that holds another one twice, and so on, stands for more than it takes: deep counts see that.
        """
        size, waiting = 1, [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                size += len(one)
            elif isinstance(one, _CONTAINERS):
                size += _ENTRY * len(one)
                self._check_size(size)
                if deep or one is not value:
                    waiting += [*one.keys(), *one.values()] if isinstance(one, Mapping) else one
        self._check_size(size)
        self._spend(size)
        return size

    def _check_size(self, size: int) -> None:
        if size > self._most_value:
            raise TemplateWorkError("a value grows too large")

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise TemplateWorkError("it does not end within its bounds")


class _Counts(NodeTransformer):
    """Puts counted filters instead of every `~`, and around every list, tuple and mapping that is not constant:
    only there can a value come to hold another one many times over, which comparing would go through."""

    def visit_Concat(self, node: nodes.Concat, *_: Any, **__: Any) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "specdec_joined", [], [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.List, *_: Any, **__: Any) -> nodes.Node:  # noqa: N802
        return self._made(node)

    def visit_Dict(self, node: nodes.Dict, *_: Any, **__: Any) -> nodes.Node:  # noqa: N802
        return self._made(node)

    def visit_Tuple(self, node: nodes.Tuple, *_: Any, **__: Any) -> nodes.Node:  # noqa: N802
        return self._made(node) if node.ctx == "load" else node

    def _made(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "specdec_made", [], [], None, None, lineno=node.lineno)


_CONTAINERS = (list, tuple, set, frozenset, Mapping)
# Filters and tests that hand on or count what they are given and never read through it, unlike those that make text.
_STRUCTURAL = {
    "length", "count", "first", "last", "list", "map", "select", "reject", "selectattr", "rejectattr", "groupby",
    "items", "default", "d", "attr", "reverse", "random", "batch", "slice", "defined", "undefined", "none", "string",
    "mapping", "iterable", "sequence", "number", "boolean", "true", "false", "callable", "integer", "float", "sameas",
    "specdec_made",
}  # fmt: skip
_JINJA = (jinja2.Environment, jinja2.runtime.Context, nodes.EvalContext)


def make_environment(**options: Any) -> BoundedEnvironment:
    """An environment with the filters that its own rewriting of templates needs."""
    environment = BoundedEnvironment(**options)
    environment.filters["specdec_passes"] = environment._passes
    environment.filters["specdec_joined"] = environment._joined
    environment.filters["specdec_made"] = environment._finalized
    environment.filters["specdec_step"] = environment._step
    return environment


def _check_depth(template: nodes.Template) -> None:
    """Refuse what is nested so deep that Python could not compile it. Concatenation of texts by `~` and chains of
    branches nest on the right without an end of their own, and have their own bound in Jinja's parser."""
    level, depth = [template], 0
    while level:
        depth += 1
        if depth > 4 * MOST_NESTED:
            raise jinja2.TemplateSyntaxError("it is nested too deep", 1)
        level = [child for node in level for child in node.iter_child_nodes()]  # type: ignore[misc]

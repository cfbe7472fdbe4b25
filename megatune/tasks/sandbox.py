"""A jinja2 sandbox that is bounded: no expression, loop or output of a template grows without end.

jinja2's own sandbox keeps a template from Python's internals, and lets it write `'x' * 10**10`.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import StrictUndefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_CHARS = 10**7
"""Of a rendered text, and of anything on the way to it."""
MOST_TURNS = 10**5
"""Turns of all loops, and calls, of one rendering: a second or so."""
_MOST_BITS = 10**5
_TURN = "_turn"
_WIDTHS = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "tojson", "wordwrap"}
)
"""Methods and filters of which a number is a width or a count."""
_NUMBERS = re.compile(r"\d{7,}")


class TooMuchError(SecurityError):
    """A template would write, or take, more than there is room or time for."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Refuses with TooMuchError what would be too large, before it is made. Use `written` to render."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    concat = staticmethod(lambda parts: _concatenated(parts))

    def __init__(self) -> None:
        # Not optimized: constant expressions would be worked out while a template is compiled, past all checks.
        super().__init__(undefined=StrictUndefined, autoescape=False, optimized=False)
        self._counted = threading.local()
        self.globals.pop("lipsum")  # draws at random
        self.globals[_TURN] = _turn
        for name in (*_WIDTHS, "replace", "join", "format"):
            if name in self.filters:
                self.filters[name] = _bounded_filter(name, self.filters[name])

    def written(self, template: Any, values: dict[str, object]) -> str:
        """The text of a template of this environment."""
        self._counted.turns = 0
        return _concatenated(template.generate(values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """One of `intercepted_binops`."""
        _BINOPS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as jinja2 names them)
        """A call in a template."""
        turns = __self._counted.turns = getattr(__self._counted, "turns", 0) + 1
        _refuse(turns > MOST_TURNS, f"it takes more than {MOST_TURNS} turns of its loops")
        if __obj is _turn:
            return ""
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 puts a function of its own around `format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            _check_text(name, owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        found: nodes.Template = _JoinedConcat().visit(super()._parse(source, name, filename))
        for loop in found.find_all(nodes.For):
            turn = nodes.Call(nodes.Name(_TURN, "load"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(turn).set_lineno(loop.lineno))
        return found


class _JoinedConcat(NodeTransformer):
    """`a ~ b` as the filter `join`, which is bounded: it is no operator that a sandbox can intercept."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  (jinja2's name)
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None).set_lineno(node.lineno)


def _turn() -> str:
    """Stands in the body of every loop; counted where it is called."""
    return ""


def _concatenated(parts: Iterable[str]) -> str:
    """What a macro, a block or `{% set %}...{% endset %}` has written."""
    found: list[str] = []
    num_chars = 0
    for part in parts:
        num_chars += len(part)
        _check_length(num_chars)
        found.append(part)
    return "".join(found)


def _refuse(is_too_much: bool, why: str) -> None:
    if is_too_much:
        raise TooMuchError(why)


def _check_length(length: int) -> None:
    _refuse(length > MOST_CHARS, f"what it writes has more than {MOST_CHARS} characters")


def _check_product(left: Any, right: Any) -> None:
    for one, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(one, str | bytes):
            _check_length(len(one) * times)
        # A list of lists would multiply with each level.
        _refuse(isinstance(one, list | tuple) and isinstance(times, int), "it multiplies a list")
    if isinstance(left, int) and isinstance(right, int):
        _refuse(
            left.bit_length() + right.bit_length() > _MOST_BITS, "it multiplies numbers that are too large"
        )


def _check_power(left: Any, right: Any) -> None:
    are_whole = isinstance(left, int) and isinstance(right, int)
    _refuse(are_whole and left.bit_length() * max(0, right) > _MOST_BITS, "a power in it is too large")


def _check_sum(left: Any, right: Any) -> None:
    if all(isinstance(one, str | bytes | list | tuple) for one in (left, right)):
        _check_length(len(left) + len(right))


def _check_format(left: Any, right: Any) -> None:
    """Of `'%10d' % 5`."""
    if isinstance(left, str):
        _check_widths(left)
        _refuse("*" in left, "a width in it is given by a value")
        _check_length(len(left) + sum(len(str(one)) for one in _several(right)))


_BINOPS: dict[str, Callable[[Any, Any], None]] = {
    "*": _check_product,
    "**": _check_power,
    "+": _check_sum,
    "%": _check_format,
}


def _check_text(name: str, text: str, args: Any, kwargs: Any) -> None:
    """A method, or a filter, of a text."""
    if name in _WIDTHS:
        _check_numbers((*args, *kwargs.values()))
    elif name == "replace" and len(args) > 1:
        old, new = str(args[0]), str(args[1])
        _check_length(len(text) + text.count(old) * len(new))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        _check_length(len(text) * len(args[0]) + sum(len(str(one)) for one in args[0]))
    elif name in ("format", "format_map"):
        _check_widths(text)
        _refuse(re.search(r"\{[^}]*\{", text) is not None, "a width in it is given by a value")


def _bounded_filter(name: str, made: Any) -> Any:
    def checked(*given: Any, **kwargs: Any) -> Any:
        # Some filters are handed a context, an environment or what is known while compiling before the value.
        at = 1 if hasattr(made, "jinja_pass_arg") else 0
        value, args = given[at], given[at + 1 :]
        if name == "join":
            found = list(value)
            _check_length(sum(len(str(one)) + len(str(args[0] if args else "")) for one in found))
            given = (*given[:at], found, *args)
        elif name == "format":
            _check_format(str(value), (*args, *kwargs.values()))
        else:
            _check_text(name, str(value) if name == "replace" else "", args, kwargs)
        return made(*given, **kwargs)

    if hasattr(made, "jinja_pass_arg"):
        checked.jinja_pass_arg = made.jinja_pass_arg  # type: ignore[attr-defined]
    return checked


def _check_numbers(values: Any) -> None:
    _refuse(
        any(isinstance(one, int) and one > MOST_CHARS // 10 for one in values),
        "a width or count in it is too large",
    )


def _check_widths(text: str) -> None:
    _refuse(_NUMBERS.search(text) is not None, "a width in it is too large")


def _several(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, tuple) else (value,)

"""A jinja2 sandbox whose texts and loops are bounded.

jinja2's own sandbox keeps a template from Python's internals, and lets it write `'x' * 10**10`. Here every text,
list and mapping that a template makes has a size that is bounded, and what can be called is listed in `growth`.
Time is bounded only by the turns of the loops, each of which may go through texts of that size.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import StrictUndefined, Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from megatune.tasks.growth import FILTERS, METHODS, OPERATORS, check_chars, extent, refuse, taken

MOST_TURNS = 10**5
"""Turns of all loops, and calls, of one rendering."""
_TURN = "_turn"
_MADE = "_made"
_OF_CONTEXT = frozenset({"_loop_vars", "_block_vars"})  # which jinja2 adds to a call, and takes off again


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Refuses with TooMuchError what would be too large, before it is made. Use `written` to render.

    Methods and filters that are not in `growth.METHODS` and `growth.FILTERS` are refused with SecurityError, a filter
    when the template is parsed. The iterators that jinja2's filters give are lists here, and its marked-up texts
    plain ones.
    """

    intercepted_binops = frozenset(OPERATORS)
    concat = staticmethod(lambda parts: _concatenated(parts))

    def __init__(self) -> None:
        # Not optimized: constant expressions would be worked out while a template is compiled, past all checks.
        super().__init__(undefined=StrictUndefined, autoescape=False, optimized=False)
        self._counted = threading.local()
        self.globals.pop("lipsum")  # draws at random
        self.globals["namespace"] = _OpaqueNamespace
        self._functions = tuple(self.globals.values())
        self.globals[_TURN] = _turn
        self.filters = {name: _bounded_filter(name, self.filters[name]) for name in FILTERS}
        self.filters[_MADE] = _made

    def written(self, template: Any, values: dict[str, object]) -> str:
        """The text of a template of this environment."""
        self._counted.turns = 0
        return _concatenated(template.generate(values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """One of `intercepted_binops`."""
        OPERATORS[operator](left, right)
        return _made(super().call_binop(context, operator, left, right))

    # Underscores as jinja2 names them: a template may give arguments of any name.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call in a template."""
        turns = __self._counted.turns = getattr(__self._counted, "turns", 0) + 1
        refuse(turns > MOST_TURNS, f"it takes more than {MOST_TURNS} turns of its loops")
        if __obj is _turn:
            return ""
        named = {name: one for name, one in kwargs.items() if name not in _OF_CONTEXT}
        extent((args, named))  # a macro has them as a list and a mapping
        __self._check_call(__obj, args, named)
        return _made(super().call(__context, __obj, *args, **kwargs))

    def _check_call(self, called: Any, args: Any, kwargs: Any) -> None:
        """Raises SecurityError for what is not to be called, or not so."""
        if isinstance(called, Macro | LoopContext | BlockReference | Joiner | Undefined):
            return
        if any(called is one for one in self._functions):
            return
        # jinja2 puts a function of its own around `format`.
        method = called if hasattr(called, "__self__") else getattr(called, "__wrapped__", called)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, LoopContext | Cycler):
            return
        allowed = next((its for types, its in METHODS.items() if isinstance(owner, types)), {})
        if name not in allowed:
            raise SecurityError(_not_allowed(owner, name, sorted(allowed)))
        check = allowed[name]
        if check is not None:
            check(owner, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        found: nodes.Template = super()._parse(source, name, filename)
        for used in found.find_all(nodes.Filter):
            if used.name not in FILTERS:
                raise TemplateSyntaxError(
                    f"there is no filter {used.name!r} here; there are {', '.join(sorted(FILTERS))}",
                    used.lineno,
                )
        for escaping in found.find_all(nodes.EvalContextModifier):
            raise TemplateSyntaxError("autoescape cannot be set: a prompt is no HTML", escaping.lineno)
        found = _CheckedNodes().visit(found)
        for loop in found.find_all(nodes.For):
            turn = nodes.Call(nodes.Name(_TURN, "load"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(turn).set_lineno(loop.lineno))
        return found


class _CheckedNodes(NodeTransformer):
    """Filters where a sandbox can intercept nothing: `a ~ b` is `join`, and a list is measured when it is made."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  (jinja2's name)
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None).set_lineno(node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Filter(node, _MADE, [], [], None, None).set_lineno(node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.ctx != "load":  # the names of `for key, value in`
            return node
        return nodes.Filter(node, _MADE, [], [], None, None).set_lineno(node.lineno)

    visit_Dict = visit_List  # noqa: N815


class _OpaqueNamespace(Namespace):
    """Written without what is in it: two that hold each other twice, and so on, would be a text without end."""

    def __repr__(self) -> str:
        return "<namespace>"


def _turn() -> str:
    """Stands in the body of every loop; counted where it is called."""
    return ""


def _made(value: Any) -> Any:
    """What an operation has given, measured."""
    if isinstance(value, Markup):
        value = str(value)
    elif isinstance(value, Iterator) and not isinstance(value, LoopContext):
        return taken(value)
    extent(value)
    return value


def _concatenated(parts: Iterable[str]) -> str:
    """What a macro, a block or `{% set %}...{% endset %}` has written."""
    found: list[str] = []
    num_chars = 0
    for part in parts:
        num_chars += len(part)
        check_chars(num_chars)
        found.append(part)
    return "".join(found)


def _not_allowed(owner: Any, name: str, allowed: list[str]) -> str:
    if not allowed:
        return f"{name or 'that'} cannot be called here"
    return f"{name} of {type(owner).__name__} cannot be called here; there are {', '.join(allowed)}"


def _bounded_filter(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    check = FILTERS[name]
    # Some filters are handed a context, an environment or what is known while compiling before the value.
    at = 1 if hasattr(made, "jinja_pass_arg") else 0

    def checked(*given: Any, **kwargs: Any) -> Any:
        if len(given) > at and isinstance(given[at], Iterator):  # `loop` is one: read once
            given = (*given[:at], taken(given[at]), *given[at + 1 :])
        if check is not None:
            check(*given[at:], **kwargs)
        return _made(made(*given, **kwargs))

    if at:
        checked.jinja_pass_arg = made.jinja_pass_arg  # type: ignore[attr-defined]
    return checked

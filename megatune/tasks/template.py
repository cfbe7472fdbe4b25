"""Prompt templates: jinja2 in a sandbox, because a run file is not a program to be trusted."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from megatune.errors import ConfigError
from megatune.tasks.columns import RowError

_OF_PYTHON = (TypeError, ValueError, ArithmeticError, LookupError, AssertionError)
"""What the expressions of a template raise, and jinja2's filters: `truncate` asserts its arguments."""


def check_template(template: str, names: set[str]) -> None:
    """Raise ConfigError when `template` is no jinja2 text, or reads a name that is not among `names`.

    A name that only some rows lack is found at the row: see `render`.
    """
    from jinja2 import meta

    compiled = _environment()
    tree = _parsed(template)
    unknown = sorted(meta.find_undeclared_variables(tree) - names - {"row"} - set(compiled.globals))
    if unknown:
        raise ConfigError(
            [
                f"data.template reads {', '.join(unknown)}, which this task does not have. It has "
                f"{', '.join(sorted(names))}, and every column of the file as row.NAME."
            ]
        )


def render(template: str, values: Mapping[str, object], row: Mapping[str, object]) -> str:
    """The prompt of one row. Raises RowError, to follow the place, for anything the template trips over."""
    import jinja2

    from megatune.tasks.growth import TooMuchError

    try:
        text: str = _environment().written(_compiled(template), {**values, "row": dict(row)})
    except TooMuchError as error:
        raise RowError(f"cannot be written by data.template: {error}. Make the template smaller") from None
    except RecursionError:
        raise RowError("cannot be written by data.template: a macro of it calls itself without end") from None
    except (jinja2.TemplateError, *_OF_PYTHON) as error:
        raise RowError(f"cannot be written by data.template: {type(error).__name__}: {error}") from None
    if not text.strip():
        raise RowError("gives an empty prompt with data.template")
    return text


@lru_cache
def reads_row(template: str) -> bool:
    """Whether `template` reads columns of the file beside those of its task."""
    from jinja2 import meta

    return "row" in meta.find_undeclared_variables(_parsed(template))


@lru_cache
def _environment() -> Any:
    from megatune.tasks.sandbox import BoundedEnvironment

    return BoundedEnvironment()


def _parsed(template: str) -> Any:
    import jinja2

    try:
        return _environment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError([f"data.template, line {error.lineno}: {error.message}"]) from None


@lru_cache
def _compiled(template: str) -> Any:
    _parsed(template)
    return _environment().from_string(template)

"""Prompt templates: jinja2 in a sandbox, because a run file is not a program to be trusted."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from megatune.errors import ConfigError
from megatune.tasks.columns import RowError

_LONGEST_PROMPT_CHARS = 10**7


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

    try:
        text: str = _compiled(template).render({**values, "row": dict(row)})
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise RowError(f"cannot be written by data.template: {type(error).__name__}: {error}") from None
    if not text.strip():
        raise RowError("gives an empty prompt with data.template")
    if len(text) > _LONGEST_PROMPT_CHARS:
        raise RowError(f"gives a prompt of {len(text)} characters with data.template")
    return text


@lru_cache
def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)


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

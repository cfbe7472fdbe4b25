"""Load a run file: the one door through which a user's settings come in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from megatune.config.auto import take_auto
from megatune.config.check import check_auto, check_run
from megatune.config.document import MAX_BYTES, Key, read_document
from megatune.config.fields import key_of
from megatune.config.problems import explain
from megatune.config.run import Run
from megatune.config.settings import Settings, command_line_settings, file_settings, merge
from megatune.errors import ConfigError

PLANNED = "planned"
_SECTIONS_WITH_REQUIRED_KEYS = ("model", "data", "train")


@dataclass(frozen=True)
class LoadedRun:
    """A run with what there is to tell about how it came about."""

    run: Run
    origins: dict[str, str]
    """Dotted key -> "run.yaml:12", "command line", "planned", "auto" or "default", for every key of the run."""
    notices: list[str]
    """One line for each foreign spelling that was read as one of ours."""
    auto: tuple[str, ...] = ()
    """Keys that say `auto` and hold their defaults until a plan is made: see `AUTO_KEYS`."""

    def planned(self, run: Run, keys: Sequence[str]) -> "LoadedRun":
        """The same with `run`, in which the planner has chosen the values of `keys`."""
        origins = self.origins | dict.fromkeys(keys, PLANNED)
        return replace(self, run=run, origins=origins, auto=())


def load_run(path: Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """Read the run file `path` and apply `key.sub=value` overrides to it.

    Relative paths in it (output_dir, data files, deepspeed) are relative to the current directory, as with
    other trainers, not to the file. Raises ConfigError with every problem at once: of the text (duplicate
    keys), else of the keys and values, else of the rules between sections.
    """
    source = str(path)
    document = read_document(_read_text(path), source=source)
    settings = Settings()
    command_line = command_line_settings(overrides, settings.problems)
    merge(file_settings(document, path.name), command_line, settings)
    auto = take_auto(settings)
    run = _validate(settings, source)
    check_auto(run, auto, source=source)
    check_run(run, source=source)
    origins = _origins(run, settings) | dict.fromkeys(auto, "auto")
    return LoadedRun(run=run, origins=origins, notices=settings.notices, auto=auto)


def _read_text(path: Path) -> str:
    source = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        fix = "`megatune init` writes one to start from"
        raise ConfigError([f"there is no such file; {fix}"], source=source) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError([f"the file cannot be read: {error}"], source=source) from error
    if len(content) > MAX_BYTES:
        raise ConfigError([f"the file is larger than {MAX_BYTES} bytes; is it a run file?"], source=source)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"the file is not UTF-8 text (byte {error.start})"], source=source) from error


def _validate(settings: Settings, source: str) -> Run:
    for section in _SECTIONS_WITH_REQUIRED_KEYS:
        if settings.values.get(section) is None:
            settings.values[section] = {}  # so that its missing keys are named one by one
    problems = list(settings.problems)
    try:
        run = Run.model_validate(settings.values)
    except ValidationError as error:
        problems += explain(error, settings)
    if problems:
        raise ConfigError(problems, source=source)
    return run


def _origins(run: Run, settings: Settings) -> dict[str, str]:
    return {
        ".".join(key): (settings.origin_of(key) if _is_given(key, settings) else None) or "default"
        for key, _ in leaves(run)
    }


def _is_given(key: Key, settings: Settings) -> bool:
    value: object = settings.values
    for name in key:
        value = value.get(name) if isinstance(value, dict) else None
    return value is not None


def leaves(section: BaseModel, above: Key = ()) -> list[tuple[Key, object]]:
    """Every key of a run that holds a value, not a section, with the value; in the order of the schema.

    Sections in a list (the parts of a mixture) have no keys of their own: they are mappings in its value.
    """
    found: list[tuple[Key, object]] = []
    for name, info in type(section).model_fields.items():
        value, key = getattr(section, name), (*above, key_of(name, info))
        found += leaves(value, key) if isinstance(value, BaseModel) else [(key, _plain(value))]
    return found


def _plain(value: object) -> object:
    """`value` with the sections of a list as mappings.

    Without the keys at their defaults, so that a part is written alike whoever spelt them out: these texts
    are compared to tell whether two runs are the same.
    """
    if not isinstance(value, list):
        return value
    return [
        item.model_dump(by_alias=True, exclude_defaults=True) if isinstance(item, BaseModel) else item
        for item in value
    ]

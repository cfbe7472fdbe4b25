"""The model that a run begins with, where its tokenizer is not the model's own: made once, in the run folder.

It is a folder with config.json, a tokenizer, and what else a Hugging Face folder has but weights: those of a
model to which tokens are added stay where they are. Checkpoints and exports take their files from it.
"""

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatune.config import Run
from megatune.data.fingerprint import file_hashes
from megatune.data.hash_memo import HashMemo
from megatune.data.read import all_blocks, check_sources, find_files
from megatune.data.spm_tokenizer import tokenizer_of
from megatune.data.spm_train import SpmSettings, train_sentencepiece
from megatune.data.texts import texts_of
from megatune.errors import ConfigError, ModelError, NotPreparedError
from megatune.files import hash_file, sync_folder
from megatune.launch.run_folder import RunFolder
from megatune.model.source import GROWTH_FILE, resolve_model
from megatune.plan.model_config import read_shape

_SPM_FILE = "sentencepiece.model"
_BASE_FILES = ("config.json", "generation_config.json")
_ID_NAMES = ("bos", "eos", "pad")


def has_start_model(run: Run) -> bool:
    """Whether the run begins with a model of its own making."""
    return run.tokenizer is not None and run.tokenizer.is_asked_for


def model_folder(run: Run) -> Path:
    """The folder of the run's model: its own, or that of the run file. Raises ModelError when it is not there."""
    if not has_start_model(run):
        return _base(run)
    folder = RunFolder(run.train.output_dir).model
    if not folder.is_dir():
        raise ModelError(
            f"there is no {folder}: it is made by `megatune prepare`, with the tokenizer of the run file."
        )
    return folder


def ready_model(run: Run, *, may_make: bool = True) -> None:
    """Make the model folder of the run, unless it is there, or none is asked for.

    may_make: False raises NotPreparedError when it would have to be made. Raises ConfigError, DataError or
    ModelError for what the user can get wrong. Several processes may do so at once.
    """
    if not has_start_model(run):
        return
    target, made_from = RunFolder(run.train.output_dir).model, _made_from(run)
    if _what_made(target) == made_from:
        return
    if not may_make:
        raise NotPreparedError(
            f"{target} is not made from the present tokenizer section, model and data.train"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="model.", suffix=".tmp", dir=target.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        growth = _write(run, made, Path(scratch))
        described = {"made_from": made_from, "growth": growth}
        (made / GROWTH_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        sync_folder(made)
        _put(made, target, made_from, Path(scratch))
    sync_folder(target.parent)


def _put(made: Path, target: Path, made_from: object, scratch: Path) -> None:
    """Give the folder `made` its name, in the place of an older one, unless another process was first with the same."""
    for attempt in count():
        try:
            made.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _what_made(target) == made_from:
            return
        with suppress(FileNotFoundError):  # another process has just moved it away
            target.rename(scratch / f"before-{attempt}")


def own_tokenizer(run: Run, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the run file names: model.tokenizer, or that of the model in `folder`.

    Raises ModelError when there is none.
    """
    named = run.model.tokenizer
    if named and Path(named).is_file() and Path(named).suffix == ".model":
        return tokenizer_of(Path(named).read_bytes(), name=named)
    return load_tokenizer(
        run, resolve_model(named, key="model.tokenizer", weights=False) if named else folder
    )


def load_tokenizer(run: Run, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises ModelError when there is none that transformers can read."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=run.model.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"no tokenizer could be read from {folder}: {error} Give one with model.tokenizer."
        ) from error
    # Where the files are missing, transformers gives an empty tokenizer of the model's type.
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"{folder} holds no tokenizer: what transformers makes of it knows no word. "
            "Give one with model.tokenizer."
        )
    return tokenizer


def _base(run: Run) -> Path:
    return resolve_model(
        run.model.model_name_or_path,
        revision=run.model.revision,
        weights=run.model.initialize == "pretrained",
    )


def _made_from(run: Run) -> dict[str, Any]:
    """All that decides what is in the folder."""
    assert run.tokenizer is not None, "has_start_model"
    base = _base(run)
    sources = run.data.train.parts
    rows: list[Any] = []
    if run.tokenizer.train is not None:
        check_sources(sources, split_name="train")
        memo = HashMemo(RunFolder(run.train.output_dir).data_hashes)
        rows = [list(entry) for entry in file_hashes(sources, memo, split_name="train")]
        memo.save()
        rows += [[source.columns, source.max_samples] for source in sources]
    return {
        "model": str(base.resolve()),
        "config": hash_file(base / "config.json"),
        "initialize": run.model.initialize,
        "tokenizer": run.model.tokenizer,
        "section": run.tokenizer.model_dump(),
        "rows": rows,
    }


def _what_made(folder: Path) -> object:
    try:
        return json.loads((folder / GROWTH_FILE).read_text(encoding="utf-8"))["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(run: Run, made: Path, scratch: Path) -> dict[str, Any] | None:
    """Write all but the description; gives the growth that is to stand in it."""
    assert run.tokenizer is not None, "has_start_model"
    base = _base(run)
    for name in _BASE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, made / name)
    for path in base.glob("*.py"):  # remote code
        shutil.copyfile(path, made / path.name)
    is_trained = run.tokenizer.train is not None
    tokenizer = _trained(run, made, scratch) if is_trained else own_tokenizer(run, base)
    num_known = len(tokenizer)
    _add(tokenizer, run)
    tokenizer.save_pretrained(made)
    rows_before = read_shape(base).vocab_size
    num_rows = len(tokenizer) if is_trained else max(rows_before, len(tokenizer))
    ids = (
        {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _ID_NAMES}
        if is_trained
        else {}
    )
    for name in _BASE_FILES:
        _change_json(made / name, {"vocab_size": num_rows, **ids} if name == "config.json" else ids)
    if run.model.initialize == "random":
        return None
    return {"weights": str(base.resolve()), "num_rows": rows_before, "num_known": num_known}


def _trained(run: Run, made: Path, scratch: Path) -> PreTrainedTokenizerBase:
    assert run.tokenizer is not None, "has_start_model"
    section = run.tokenizer
    settings = SpmSettings(
        vocab_size=section.vocab_size,
        model_type=section.model_type,
        character_coverage=section.character_coverage,
        byte_fallback=section.byte_fallback,
    )
    model = train_sentencepiece(_texts(run, scratch), settings)
    (made / _SPM_FILE).write_bytes(model)
    return tokenizer_of(model, name=_SPM_FILE)


def _texts(run: Run, scratch: Path) -> Iterator[str]:
    sources = tuple(
        find_files(source, split_name="train", scratch=scratch / f"source-{number}")
        for number, source in enumerate(run.data.train.parts)
    )
    for found in all_blocks(sources):
        for row in found.block.rows():
            yield from texts_of(row.values, run.data.task, sources[found.source].columns)


def _add(tokenizer: PreTrainedTokenizerBase, run: Run) -> None:
    assert run.tokenizer is not None, "has_start_model"
    known = [token for token in run.tokenizer.added if token in tokenizer.get_vocab()]
    if known:
        raise ConfigError(
            [f"tokenizer adds {', '.join(map(repr, known))}, which it has already; take it out."]
        )
    tokenizer.add_tokens(run.tokenizer.add_tokens)
    tokenizer.add_tokens(run.tokenizer.add_special_tokens, special_tokens=True)


def _change_json(path: Path, changes: Mapping[str, object]) -> None:
    if not path.is_file() or not changes:
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    text = found.get("text_config") or found
    text.update(changes)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

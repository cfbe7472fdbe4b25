"""Find out what kind of checkpoint a folder is, and open it."""

from pathlib import Path

from megatune.checkpoint.convert.foreign import ForeignState
from megatune.checkpoint.convert.universal import OPTIMIZER_STATE, ZERO, Universal
from megatune.checkpoint.convert.zero_shards import ZeroShards
from megatune.errors import ConvertError

_HINTS = ("latest", "latest_universal")


def open_foreign(source: Path) -> ForeignState:
    """The training state in `source`: a step's folder of DeepSpeed, the folder its `latest` stands in, or a
    `checkpoint-N` of Hugging Face's Trainer. Raises ConvertError that says what was looked for.
    """
    folder = _step_folder(source)
    if (folder / ZERO / OPTIMIZER_STATE).is_file():
        return Universal(folder)
    return ZeroShards(folder)


def find_model(source: Path) -> Path | None:
    """The folder with config.json that came with the checkpoint, as the Trainer writes it; None without one."""
    for folder in (source, source.absolute().parent):
        if (folder / "config.json").is_file():
            return folder
    return None


def _step_folder(source: Path) -> Path:
    if not source.is_dir():
        raise ConvertError(f"{source} is no folder.")
    if _is_step(source):
        return source
    for name in _HINTS:
        hint = source / name
        if hint.is_file():
            tag = hint.read_text(encoding="utf-8", errors="replace").strip()
            if Path(tag).name != tag or tag in ("", ".", ".."):
                raise ConvertError(f"{hint} names {tag!r}, which is no folder beside it: refused.")
            if not _is_step(source / tag):
                raise ConvertError(f"{hint} names {tag}, which holds no checkpoint of DeepSpeed.")
            return source / tag
    held = sorted(path.name for path in source.iterdir())[:6]
    raise ConvertError(
        f"{source} is no checkpoint that can be converted: neither zero_pp_rank_*_optim_states.pt (DeepSpeed ZeRO-3), "
        f"{ZERO}/{OPTIMIZER_STATE} (universal) nor a file {' or '.join(_HINTS)} are in it, but "
        f"{', '.join(held) or 'nothing'}. Give global_stepN, the folder above it, or the Trainer's checkpoint-N."
    )


def _is_step(folder: Path) -> bool:
    return (folder / ZERO / OPTIMIZER_STATE).is_file() or any(folder.glob("*zero_pp_rank_*_states.pt"))

"""Checkpoints: save, find, load, export. The training loop uses these functions and no others."""

from megatune.checkpoint.export import export_checkpoint, replace_export
from megatune.checkpoint.folders import prune, remove_unfinished, set_aside_newer, write_hint
from megatune.checkpoint.layout import folder_name
from megatune.checkpoint.read import find_checkpoint, load_checkpoint
from megatune.checkpoint.weights_index import describe_weights
from megatune.checkpoint.write import save_checkpoint

__all__ = [
    "describe_weights",
    "export_checkpoint",
    "find_checkpoint",
    "folder_name",
    "load_checkpoint",
    "prune",
    "remove_unfinished",
    "replace_export",
    "save_checkpoint",
    "set_aside_newer",
    "write_hint",
]

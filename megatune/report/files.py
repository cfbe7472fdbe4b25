"""The former place of `megatune.files`."""

from megatune.files import sync_folder, write_text_atomic

__all__ = ["sync_folder", "write_text_atomic"]

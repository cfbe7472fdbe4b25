"""Compile ops on this node before the ranks start: `python -m megatune.launch.slurm.prebuild OP ...`."""

import os
import sys

from megatune.errors import LaunchError, MegatuneError
from megatune.launch.extensions import ensure_built, extension_folder
from megatune.launch.processes import module_command
from megatune.launch.ranks import extension_folder_override

_ROOT = 0


def prebuild(ops: list[str]) -> None:
    """Build `ops` where the ranks of this node will look for them. Raises LaunchError when that fails.

    Refuses a folder of another user: on a disk that all users share, its files could be anybody's.
    """
    base = extension_folder_override()
    for folder in () if base is None else (base, base.parent):
        if folder.exists() and folder.stat().st_uid not in (os.getuid(), _ROOT):
            raise LaunchError(f"{folder} belongs to another user. Set another scratch in the site profile.")
    ensure_built(module_command("megatune.engine.build_ops", *ops), extension_folder(base))


def main() -> None:
    try:
        prebuild(sys.argv[1:])
    except MegatuneError as error:
        print(f"megatune: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

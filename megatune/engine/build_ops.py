"""Compile the DeepSpeed ops a run needs, before its ranks start: `python -m megatune.engine.build_ops OP ...`."""

import sys

from deepspeed.ops.op_builder import CPUAdamBuilder

_BUILDERS = {"cpu_adam": CPUAdamBuilder}


def main(ops: list[str]) -> None:
    """Build each op of `ops` and load it once; a failed build raises with the compiler's words."""
    for op in ops:
        _BUILDERS[op]().load(verbose=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Compile the DeepSpeed ops a run needs, before its ranks start: `python -m megatune.engine.build_ops OP ...`."""

import sys

from deepspeed.ops.op_builder import CPUAdamBuilder, QuantizerBuilder

from megatune.engine.accelerator import refuse_missing_toolkit

_BUILDERS = {"cpu_adam": CPUAdamBuilder, "quantizer": QuantizerBuilder}


def main(ops: list[str]) -> None:
    """Build each op of `ops` and load it once; a failed build raises with the compiler's words."""
    refuse_missing_toolkit(ops)
    for op in ops:
        _BUILDERS[op]().load(verbose=True)


if __name__ == "__main__":
    main(sys.argv[1:])

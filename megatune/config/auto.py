"""Keys that a run file may leave to the planner by `auto`, and how such a value is taken out of it.

A run holds the key's default until the planner has chosen: `LoadedRun.auto` names what is still open.
`model.gradient_checkpointing` is not among them: it has `auto` as a value of its own.
"""

from megatune.config.settings import Settings

AUTO_KEYS = (
    "parallel.tp_size",
    "parallel.zero_stage",
    "parallel.offload",
    "train.per_device_train_batch_size",
)


def take_auto(settings: Settings) -> tuple[str, ...]:
    """The keys that say `auto`, which are taken out of `settings`: their defaults hold until a plan is made."""
    found = []
    for name in AUTO_KEYS:
        section, _, key = name.partition(".")
        values = settings.values.get(section)
        if isinstance(values, dict) and values.get(key) == "auto":
            del values[key]
            found.append(name)
    return tuple(found)

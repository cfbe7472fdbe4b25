"""`megatune demo`: fetch, answer, fine-tune, answer again."""

from importlib.resources import as_file, files
from pathlib import Path

from megatune.cli.train import train_run
from megatune.launch.devices import count_gpus
from megatune.launch.fork_server import rank_starts
from megatune.launch.processes import Start

PROMPTS = ("Are you a robot?", "What is your favorite food?")
_MAX_NEW_TOKENS = 40
_RECIPE = "recipes/demo.yaml"


def run_demo(overrides: list[str]) -> int:
    """Fine-tune SmolLM2-135M on dialogues and show what changed. Returns the exit code."""
    from megatune.data.assets import fetch_asset
    from megatune.train.job import PRELOAD

    # The process that ranks are forked from comes first: they would inherit what making the weights leaves.
    with rank_starts(PRELOAD) as start, as_file(files("megatune.data") / _RECIPE) as recipe:
        for line in fetch_asset("demo", Path("assets")):
            print(line)
        return _tune_between_answers(recipe, [*demo_layout(count_gpus()), *overrides], start)


def _tune_between_answers(recipe: Path, settings: list[str], start: Start) -> int:
    from megatune.config import load_run
    from megatune.evaluate.decoding import Decoding
    from megatune.evaluate.writer import answer_prompts

    run = load_run(recipe, settings).run
    decoding = Decoding(max_new_tokens=_MAX_NEW_TOKENS)
    before = answer_prompts(Path(run.model.model_name_or_path), list(PROMPTS), chat=True, decoding=decoding)
    code = train_run(recipe, settings, start=start)
    if code != 0:
        return code
    exported = Path(run.train.output_dir) / "export"
    after = answer_prompts(exported, list(PROMPTS), chat=True, decoding=decoding)
    for prompt, old, new in zip(PROMPTS, before, after, strict=True):
        print(f"\n{prompt}\n  before: {_one_line(old)}\n  after:  {_one_line(new)}")
    return code


def demo_layout(num_gpus: int) -> list[str]:
    """Overrides that lay the demo out on this machine: dp=2 x tp=2 where four ranks have room.

    >>> demo_layout(0)
    ['launch.nproc_per_node=4', 'parallel.tp_size=2']
    """
    num_ranks = {0: 4, 1: 1, 2: 2, 3: 2}.get(num_gpus, 4)
    return [f"launch.nproc_per_node={num_ranks}", f"parallel.tp_size={min(2, num_ranks)}"]


def _one_line(text: str) -> str:
    return " ".join(text.split())

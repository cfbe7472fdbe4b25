"""`--layout`: what is written there is what is judged, or it is refused."""

import pytest

from megatune.errors import ConfigError
from megatune.plan.layout_text import parse_layout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tp=8,tp=2", "tp is given 2 times"),
        ("offload=nvme", "none, optimizer, all, or nvme:/absolute/path"),
        ("offload=nvme:scratch", "none, optimizer, all, or nvme:/absolute/path"),
        ("chunked_loss=true", "train.chunked_loss=true behind the run file"),
        ("seq=4096", "--seq"),
        ("zero_stage=4", "0, 1, 2 or 3"),
    ],
)
def test_what_is_no_layout_is_refused_with_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_layout(text, 16)
    assert words in str(refused.value)


def test_a_local_disk_is_taken_as_the_run_file_takes_it() -> None:
    parsed = parse_layout("offload=nvme:/scratch/run, micro_batch = 2", 16)
    assert (parsed.offload, parsed.offload_kind, parsed.micro_batch) == ("nvme:/scratch/run", "nvme", 2)

"""`megatune report` of bench records: a table, pictures, and one page that needs nothing else."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from megatune.bench.figures import scaling, training_cases
from megatune.bench.record import PEAKS, peak_words, read_record
from megatune.bench.roofline import floors
from megatune.cli.report import report_paths
from megatune.errors import ConfigError

WORK = {"model": "llama-17m", "rows": "full", "max_seq_length": 256, "micro_batch": 2, "precision": "bf16"}


def case(name: str, tokens_per_second: float, *, ranks: int = 2, **changes: Any) -> dict[str, Any]:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "low": 0.9 * value, "high": 1.2 * value}

    return {
        "name": name,
        "failure": None,
        "work": {**WORK, "ranks": ranks, "warmup_steps": 1, "steps": 3, "learning_rate": 1e-4},
        "engine": "an engine",
        "tokens_per_second": spread(tokens_per_second),
        "cpu_seconds_per_token": spread(1e-3),
        "peak_memory_bytes": 2**30,
        "to_baseline": None,
        "runs": [],
        **changes,
    }


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Strong scaling, a failure, a program, and a case that did other work."""
    path = tmp_path / "scaling-cpu.json"
    other = "not compared: the loss of step 1 is 2 beside 3"
    content = {
        "schema": 1,
        "suite": "scaling",
        "about": "more ranks <& more>",
        "time": "2026-01-31T12:00:00+00:00",
        "machine": {
            "cpu": "a cpu", "cpu_cores": 2, "host_memory_bytes": 2**34, "gpus": [], "load_1_5_15_min": [0.1, 0.1, 0.1],
        },
        "peaks": {
            "ranks": 2, "flops_per_s": {"fp32": 5e10, "bf16": 1e11}, "memory_bytes_per_s": 1e10,
            "link_bytes_per_s": 1e9,
        },
        "node_links": [{"nodes": 2, "ranks": 2, "link_bytes_per_s": 5e8}],
        "other_peaks": [{"ranks": 1, "flops_per_s": {"fp32": 1e11, "bf16": 5e10}, "memory_bytes_per_s": 2e10}],
        "versions": {"torch": "2.13.0", "flash-attn": None},
        "commit": "abc",
        "rounds": 2,
        "baseline": "strong, 1 rank",
        "cases": [
            case("strong, 1 rank", 500.0, ranks=1),
            case("strong, 2 ranks", 900.0, to_baseline={"tokens_per_second": {"median": 1.8, "low": 1.7, "high": 1.9}}),
            case("elsewhere", 700.0, to_baseline=other),
            {"name": "broken", "failure": "broken ended with exit code 1:\nlong"},
            {"name": "links", "failure": None, "program": ["links.py"], "printed": [PRINTED]},
        ],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


PRINTED = [
    {"cpu": "x", "python": "3.11"},
    {"bytes": 4096, "median_s": 0.08341, "range_s": [0.08, 1.5], "bytes_per_s": 2**31},
    {"bytes": 65536, "median_s": None, "range_s": [2.0, 3.0], "bytes_per_s": 2**30},
    {"megabytes": 64, "peak_bytes_worker": 2**20},
    {"bytes": 0, "median_s": 0, "range_s": [], "bytes_per_s": 0},
    {"machine": {"cpu": "x"}, "wall_s": {"bare": [5.0, 6.0]}, "examples_per_cpu_s": 801010, "done": True},
]
"""A line of where it was measured, three that belong to one table, two of others."""


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link")
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_record_becomes_tables_pictures_and_one_page_that_fetches_nothing(record, capsys):
    report_paths([record], as_json=True)
    found = json.loads(capsys.readouterr().out)

    for name in ("bars", "scaling", "roofline"):
        assert record.with_name(f"scaling-cpu-{name}.png").read_bytes().startswith(b"\x89PNG")
    page = Path(found["page"]).read_text()
    images = _Images()
    images.feed(page)
    assert len(images.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in images.sources)
    assert "more ranks &lt;&amp; more&gt;" in page
    assert "not compared: the loss of step 1" in page
    assert "failed: broken ended with exit code 1:" in page
    assert "1.80" in page
    assert [row["case"] for row in found["records"][0]["cases"]] == [
        "strong, 1 rank", "strong, 2 ranks", "elsewhere", "broken"
    ]  # fmt: skip
    assert found["records"][0]["printed"] == [
        {
            "case": "links",
            "rows": [
                {"bytes": "4.00 KiB", "median": "83.4 ms", "range": "80 ms .. 1.5 s", "rate": "2.00 GiB/s"},
                {"bytes": "64.00 KiB", "median": "n/a", "range": "2 s .. 3 s", "rate": "1.00 GiB/s"},
                {"bytes": "0 B", "median": "0 s", "range": "", "rate": "0 B/s"},
            ],
        },
        {"case": "links", "rows": [{"megabytes": "64", "peak worker": "1.00 MiB"}]},
        {
            "case": "links",
            "rows": [{"wall, bare": "5 s, 6 s", "examples per cpu s": "8.01e+05", "done": "yes"}],
        },
    ]
    assert '<td class="n">83.4 ms</td>' in page


@pytest.mark.parametrize(
    ("gpus", "kind", "words"),
    [
        ([], "peak_rss_bytes", "1.00 GiB RSS"),
        ([{"name": "H200"}], "peak_allocated_bytes", "1.00 GiB allocated"),
    ],
)
def test_an_older_record_had_one_peak_of_the_kind_that_its_machine_has(record, gpus, kind, words):
    content = json.loads(record.read_text())
    content["machine"]["gpus"] = gpus
    content["cases"][0]["runs"] = [{"peak_memory_bytes": 2**30}]
    record.write_text(json.dumps(content))
    found = read_record(record)
    first, (run,) = found["cases"][0], found["cases"][0]["runs"]
    for entry in (first, run):
        assert {name: entry[name] for name in PEAKS} == {**dict.fromkeys(PEAKS), kind: 2**30}
        assert "peak_memory_bytes" not in entry
    assert peak_words(first) == words
    assert found["cut_off"] is None


def test_reserved_memory_stands_beside_allocated():
    held = {"peak_allocated_bytes": 2**30, "peak_reserved_bytes": 2**31, "peak_rss_bytes": 5}
    assert peak_words(held) == "1.00 GiB allocated (2.00 GiB reserved)"
    assert peak_words({}) == "n/a"


def test_lines_of_scaling_join_cases_that_differ_in_ranks_alone(record):
    lines = scaling(training_cases(json.loads(record.read_text())))
    assert {name: [point.ranks for point in points] for name, points in lines.items()} == {"strong": [1, 2]}


def test_the_share_of_the_peak_is_the_models_operations_over_the_products_of_all_ranks(record):
    content = json.loads(record.read_text())
    share = next(one.peak_share for one in training_cases(content) if one.name == "strong, 2 ranks")
    # 17 M Llama: 6 x (10.6 M in blocks + 3.1 M head) + 12 x 6 layers x 384 x 256 operations a token.
    blocks = 6 * (4 * 384 * 384 + 3 * 384 * 1024)
    a_token = 6 * (blocks + 8192 * 384) + 12 * 6 * 384 * 256
    assert share == pytest.approx(900.0 * a_token / (2 * 1e11))
    alone = next(one.peak_share for one in training_cases(content) if one.name == "strong, 1 rank")
    # Of what one rank reaches by itself, in fp32, which multiplies bf16 operands faster there.
    assert alone == pytest.approx(500.0 * a_token / 1e11)
    # Four ranks on two cores compute two at a time.
    content["cases"][1]["work"]["ranks"] = 4
    crowded = next(one.peak_share for one in training_cases(content) if one.name == "strong, 2 ranks")
    assert crowded == pytest.approx(share)
    del content["peaks"], content["other_peaks"]
    assert all(one.peak_share is None for one in training_cases(content))


def test_a_step_has_floors_of_memory_and_links(record):
    content = json.loads(record.read_text())
    content["cases"][1]["engine"] = "DeepSpeed (stage 3) over dp=2 x tp=1, fused"
    content["cases"][2]["engine"] = "DeepSpeed (stage 3) over dp=1 x tp=2, fused"
    by_data, by_tensor = (
        next(one.floors for one in training_cases(content) if one.name == name)
        for name in ("strong, 2 ranks", "elsewhere")
    )
    assert by_data is not None
    assert by_tensor is not None
    params = 6 * (4 * 384 * 384 + 3 * 384 * 1024 + 2 * 384) + 2 * 8192 * 384 + 384
    steps_a_second = 900.0 / (2 * 2 * 256)
    # 28 bytes of optimizer state and three passes over bf16 weights, shared out over two ranks.
    assert by_data.memory == pytest.approx(params * 34 / (2 * 1e10) * steps_a_second)
    # Half of the gradients out and half of the weights in.
    assert by_data.links == pytest.approx(2 * params / 1e9 * steps_a_second)
    # Four sums a block of two rows of hidden states a rank's group has, each sent once by two ranks.
    sent = 6 * 4 * 2 * (4 * 256 * 384)
    assert by_tensor.links == pytest.approx(sent / 1e9 * 700.0 / (2 * 2 * 256))
    assert by_data.highest == max(by_data.products, by_data.memory, by_data.links)
    assert next(one.floors.links for one in training_cases(content) if one.name == "strong, 1 rank") is None
    report_paths([record], as_json=False)
    assert "links 1.00 GB/s" in record.with_suffix(".html").read_text()


@pytest.mark.parametrize("paths", [["a.json", "runs/first"], ["runs/a", "runs/b"]])
def test_a_mixture_is_refused(paths):
    with pytest.raises(ConfigError, match="one run folder, or records"):
        report_paths([Path(path) for path in paths], as_json=False)


def test_another_file_is_no_record(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(
        ConfigError, match=re.escape(f"{path}: it is no record of `megatune bench`: it has no 'schema'")
    ):
        report_paths([path], as_json=False)
    with pytest.raises(ConfigError, match=r"nothere.json: cannot be read: No such file or directory"):
        report_paths([tmp_path / "nothere.json"], as_json=False)


def test_the_floor_of_links_between_machines_is_taken_from_what_was_measured_between_them(record):
    content = json.loads(record.read_text())
    case = next(one for one in content["cases"] if one["name"] == "strong, 2 ranks")
    case["engine"] = "megatune dp=2 x tp=1"
    inside = floors(case, content)
    case["work"]["nodes"] = 2
    between = floors(case, {**content, "other_peaks": [{**content["peaks"], "ranks": 1}]})
    unknown = floors(case, {**content, "other_peaks": [{**content["peaks"], "ranks": 1}], "node_links": []})
    assert inside and between and unknown
    # 1 GB/s inside the machine, half of it between two.
    assert between.links == pytest.approx(2 * inside.links)
    assert unknown.links is None

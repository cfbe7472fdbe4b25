"""What the settings of `data` do to the sets: mixtures, validation rows, long rows, worker processes."""

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_sources import Source, preparation
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CharTokenizer, TalkingTokenizer

from megatune.data import crew, prepare
from megatune.data.mixture import Mixture
from megatune.errors import DataError, LaunchError
from megatune.tasks import TaskOptions


@pytest.fixture
def write(tmp_path):
    def run(name, texts):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    return run


def texts(prepared, tokenizer):
    """Of all rows, in order: an example that comes twice is there twice."""
    examples = [example for row in range(prepared.num_rows) for example in prepared.row(row)]
    return [tokenizer.decode(example.input_ids.tolist()).removesuffix("<|im_end|>") for example in examples]


def files_of(prepared):
    return {path.name: path.read_bytes() for path in prepared.folder.iterdir()}


# --- mixtures ---


@pytest.mark.parametrize(
    ("weights", "no_row_twice", "counts"),
    [
        (None, False, (10, 30)),
        ((1.0, 1.0), False, (30, 30)),
        ((1.0, 1.0), True, (10, 10)),
        ((3.0, 1.0), False, (90, 30)),
        ((3.0, 1.0), True, (10, 3)),
        ((0.1, 0.9), False, (10, 90)),
    ],
)
@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_holds_each_source_by_its_weight(
    write, tmp_path, gpt2_like, weights, no_row_twice, counts, packing
):
    paths = [write("a.jsonl", [f"a{i}" for i in range(10)]), write("b.jsonl", [f"b{i}" for i in range(30)])]
    mixed = {"weights": weights, "no_row_twice": no_row_twice, "packing": packing}
    prepared = preparation(paths, gpt2_like, tmp_path / "p", **mixed).prepare()
    times = Counter(texts(prepared, gpt2_like))
    by_source = Counter()
    for text, count in times.items():
        by_source[text[0]] += count
    assert (by_source["a"], by_source["b"]) == counts
    assert prepared.num_examples == 40  # an example that comes again is not stored again
    if not no_row_twice:
        assert len(times) == 40
        for source in "ab":
            own = [count for text, count in times.items() if text[0] == source]
            assert max(own) - min(own) <= 1
    else:
        assert max(times.values()) == 1


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 9), min_size=4, max_size=4),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_shares_are_exact_for_any_weights(counts, weights, no_row_twice, seed):
    weights = weights[: len(counts)]
    copies = Mixture.of(counts, weights, no_row_twice, seed).copies_of(np.arange(sum(counts)))
    lengths = [count / weight for count, weight in zip(counts, weights, strict=True)]
    epoch = min(lengths) if no_row_twice else max(lengths)
    for part, weight in zip(np.split(copies, np.cumsum(counts)[:-1]), weights, strict=True):
        assert part.sum() == max(1, round(epoch * weight))
        assert part.max() - part.min() <= 1


def test_the_seed_draws_other_rows_and_the_same_seed_the_same(write, tmp_path, gpt2_like):
    paths = [write("a.jsonl", [f"a{i}" for i in range(10)]), write("b.jsonl", [f"b{i}" for i in range(300)])]

    def drawn(seed):
        settings = {"weights": (1.0, 1.0), "no_row_twice": True, "seed": seed}
        return set(
            texts(preparation(paths, gpt2_like, tmp_path / str(seed), **settings).prepare(), gpt2_like)
        )

    assert len(drawn(1)) == 20
    assert len({frozenset(drawn(seed)) for seed in range(8)}) > 3


def test_each_part_has_its_own_columns_and_limit(write, tmp_path, gpt2_like):
    write("a.jsonl", ["one", "two"])
    (tmp_path / "b.csv").write_text("body,text\nthree,no\nfour,no\n")
    sources = [Source([str(tmp_path / "a.jsonl")], max_samples=1), Source([str(tmp_path / "b.csv")])]
    sources[1].columns = {"text": "body"}
    prepared = preparation(sources, gpt2_like, tmp_path / "p", packing=False).prepare()
    assert texts(prepared, gpt2_like) == ["one", "three", "four"]


def test_an_empty_part_of_a_mixture_is_named(write, tmp_path, gpt2_like):
    paths = [write("a.jsonl", ["a"]), write("b.jsonl", [" "])]
    with pytest.raises(DataError, match="part 2 of the mixture has nothing to train on"):
        preparation(paths, gpt2_like, tmp_path / "p", weights=(1.0, 1.0)).prepare()


# --- validation rows ---


@pytest.mark.parametrize(("val_size", "expected"), [(0.25, 50), (30, 30), (1, 1), (0.001, 1)])
def test_validation_rows_are_taken_out_and_none_is_lost(write, tmp_path, gpt2_like, val_size, expected):
    every = [f"row {i}" for i in range(200)]
    prepare = preparation([write("a.jsonl", every)], gpt2_like, tmp_path / "p", val_size=val_size)
    train, validation = prepare.prepare_both()
    one, other = texts(train, gpt2_like), texts(validation, gpt2_like)
    assert len(other) == expected
    assert sorted(one + other) == sorted(every)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=60),
    val_size=st.sampled_from([0.2, 0.5, 3]),
)
def test_equal_rows_are_never_on_both_sides(tmp_path_factory, gpt2_like, rows, val_size):
    folder = tmp_path_factory.mktemp("split")
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(rows)))
    prepare = preparation([path], gpt2_like, folder / "p", val_size=val_size)
    if len(set(rows)) == 1:
        with pytest.raises(DataError, match=r"leaves none to train on \(equal rows stay together\)"):
            prepare.prepare_both()
        return
    try:
        train, validation = prepare.prepare_both()
    except DataError as error:  # the rows of the smallest key may be nearly all
        assert "equal rows stay together" in str(error)
        return
    one, other = texts(train, gpt2_like), texts(validation, gpt2_like)
    assert not set(one) & set(other)
    assert sorted(one + other) == sorted(rows)


def test_which_rows_are_taken_depends_on_what_they_say_and_the_seed_alone(write, tmp_path, gpt2_like):
    every = [f"row {i}" for i in range(100)]

    def taken(rows, seed=1):
        path = write("a.jsonl", rows)
        made = preparation([path], gpt2_like, tmp_path / "p", val_size=20, seed=seed).prepare_both()
        return set(texts(made[1], gpt2_like))

    assert taken(every) == taken(every[::-1])
    assert len(taken(every) & taken(every, seed=2)) < 15


def test_long_rows_that_are_divided_stay_on_one_side(write, tmp_path, gpt2_like):
    every = [f"{i} " * 300 for i in range(12)]
    divided = {"val_size": 0.5, "long_rows": "chunk"}
    sets = preparation([write("a.jsonl", every)], gpt2_like, tmp_path / "p", **divided).prepare_both()
    one, other = (
        {text.split()[1] for text in texts(made, gpt2_like) if len(text.split()) > 2} for made in sets
    )
    assert len(one) == len(other) == 6
    assert not one & other


# --- long rows ---

LONG = " ".join(str(number) for number in range(300))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_row_is_cut_at_the_side_that_was_asked_for(write, tmp_path, gpt2_like, side):
    path = write("a.jsonl", [LONG])
    prepared = preparation([path], gpt2_like, tmp_path / "p", truncation_side=side).prepare()
    whole = [*gpt2_like(LONG).input_ids, gpt2_like.eos_token_id]
    ids = prepared.example(0).input_ids.tolist()
    assert ids == (whole[:64] if side == "right" else whole[-64:])
    assert prepared.report.num_truncated == 1
    assert prepared.report.num_tokens_cut == len(whole) - 64


def test_bos_stays_when_a_row_is_cut_at_the_left(write, tmp_path, llama_like):
    prepared = preparation(
        [write("a.jsonl", [LONG])], llama_like, tmp_path / "p", truncation_side="left"
    ).prepare()
    ids = prepared.example(0).input_ids.tolist()
    whole = [*llama_like(LONG).input_ids, llama_like.eos_token_id]
    assert ids == [llama_like.bos_token_id, *whole[-63:]]


def test_a_divided_row_loses_nothing(write, tmp_path, gpt2_like):
    made = preparation([write("a.jsonl", [LONG, "short"])], gpt2_like, tmp_path / "p", long_rows="chunk")
    prepared = made.prepare()
    whole = [*gpt2_like(LONG).input_ids, gpt2_like.eos_token_id]
    pieces = [prepared.example(i).input_ids.tolist() for i in range(prepared.num_examples - 1)]
    assert [token for piece in pieces for token in piece] == whole
    assert [len(piece) for piece in pieces[:-1]] == [64] * (len(pieces) - 1)
    assert (prepared.report.num_truncated, prepared.report.num_divided) == (0, 1)


def test_a_prompt_is_not_divided_but_cut(tmp_path, gpt2_like):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "count:", "completion": f" {LONG}"}))
    prepared = preparation([path], gpt2_like, tmp_path / "p", long_rows="chunk").prepare()
    assert (prepared.num_examples, prepared.report.num_truncated) == (1, 1)


def test_long_rows_can_be_dropped(write, tmp_path, gpt2_like):
    prepared = preparation(
        [write("a.jsonl", [LONG, "short"])], gpt2_like, tmp_path / "p", long_rows="drop"
    ).prepare()
    assert texts(prepared, gpt2_like) == ["short"]
    assert prepared.report.num_too_long == 1


def test_a_row_of_megabytes_is_cut_like_any_other(write, tmp_path, gpt2_like):
    path = write("a.jsonl", ["x y " * 500_000, "short"])
    prepared = preparation([path], gpt2_like, tmp_path / "p").prepare()
    assert [len(prepared.example(i).input_ids) for i in range(2)] == [
        64,
        len(gpt2_like("short").input_ids) + 1,
    ]
    assert prepared.report.longest[0][1].endswith("a.jsonl")
    assert prepared.report.longest[0][2:] == (1, 1)


# --- worker processes ---


@pytest.fixture
def many(tmp_path, write):
    """Files of three kinds in some blocks."""
    write("a.jsonl", [f"the number of this row is {i}" for i in range(3000)])
    (tmp_path / "b.csv").write_text("text\n" + "".join(f"cell {i}\n" for i in range(2500)))
    (tmp_path / "c.txt").write_text("\n\n".join(f"document {i}" for i in range(1500)))
    return [tmp_path / name for name in ("a.jsonl", "b.csv", "c.txt")]


def test_workers_make_the_set_of_one_process(many, tmp_path, gpt2_like):
    alone = preparation(many, gpt2_like, tmp_path / "1").prepare()
    together = preparation(many, gpt2_like, tmp_path / "2", num_workers=2).prepare()
    assert files_of(together) == files_of(alone)
    assert [path.name for path in (tmp_path / "2").iterdir()] == [alone.fingerprint]


def test_workers_take_no_module_from_the_users_folder(many, tmp_path, gpt2_like, monkeypatch):
    for name in ("tokenize", "queue", "tokenizers", "megatune"):
        (tmp_path / f"{name}.py").write_text('raise SystemExit("usage: a script of the user")')
    monkeypatch.chdir(tmp_path)
    made = preparation(many, gpt2_like, tmp_path / "p", num_workers=2).prepare()
    assert made.report.num_usable == 7000


def test_what_a_tokenizer_prints_in_a_worker_is_not_taken_for_the_workers_word(
    tmp_path, write, monkeypatch, capfd
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    # Code of a library may print as well; this class stands for it, and would be kept in one process.
    monkeypatch.setattr(prepare, "choose_num_workers", lambda asked, *_: asked)
    rows = [write("a.jsonl", ["first", "second"])]
    alone = preparation(rows, CharTokenizer(), tmp_path / "1", num_workers=1).prepare()
    together = preparation(rows, TalkingTokenizer(), tmp_path / "2", num_workers=2).prepare()
    assert together.report == alone.report
    said = capfd.readouterr()
    assert "tokenising" in said.err
    assert "a library in C" in said.err
    assert said.out == ""


ROWS_OF_TASKS = {
    "dialogue": {"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]},
    "classification": {"text": "2 + 2 = 4", "label": "b"},
    "ner": {"tokens": ["Paris", "is"], "tags": ["B-LOC", "O"]},
    "qa": {"question": "Where is it?", "context": "Paris is in France.", "answer": "France"},
}


@pytest.mark.parametrize(
    ("task", "head"),
    [("dialogue", "lm"), *itertools.product(("classification", "ner", "qa"), ("lm", "classifier"))],
)
def test_workers_read_each_task_as_one_process_does(tmp_path, gpt2_like, task, head):
    options = TaskOptions(labels={"classification": ("a", "b"), "ner": ("LOC",)}.get(task, ()))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**ROWS_OF_TASKS[task], "id": at}) + "\n" for at in range(50)))
    alone, together = (
        preparation(
            [path],
            gpt2_like,
            tmp_path / str(workers),
            task=task,
            head=head,
            options=options,
            num_workers=workers,
        ).prepare()
        for workers in (1, 2)
    )
    assert files_of(together) == files_of(alone)
    assert together.report == alone.report


def test_the_first_problem_of_workers_is_that_of_one_process(tmp_path, gpt2_like):
    rows = [{"text": "fine"}] * 30_000
    rows[22_000] = {"txt": "first"}
    rows[28_000] = {"txt": "second"}
    path = tmp_path / "broken.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = set()
    for workers in (1, 2):
        with pytest.raises(DataError) as caught:
            preparation([path], gpt2_like, tmp_path / "p", num_workers=workers).prepare()
        said.add(str(caught.value).partition(" lacks")[0])
    assert said == {f"{path}:22001 (row 22001)"}
    assert list((tmp_path / "p").iterdir()) == []


def test_a_killed_worker_ends_the_preparing_with_a_reason_and_leaves_nothing(
    many, tmp_path, gpt2_like, monkeypatch
):
    started = []
    real = crew.start_process
    monkeypatch.setattr(crew, "start_process", lambda *a, **k: started.append(real(*a, **k)) or started[-1])

    def kill_second():
        while len(started) < 2:
            time.sleep(0.01)
        os.kill(started[1].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_second)
    killer.start()
    with pytest.raises(
        LaunchError, match=r"\(number 1\) was killed \(SIGKILL\).*data.preprocessing_num_workers"
    ):
        preparation(many, gpt2_like, tmp_path / "p", num_workers=2).prepare()
    killer.join()
    assert all(process.poll() is not None for process in started)
    assert list((tmp_path / "p").iterdir()) == []


def test_little_data_needs_no_workers(gpt2_like, slow):
    assert crew.choose_num_workers(None, 8, 1000, gpt2_like) == 1
    assert crew.choose_num_workers(None, 8, 1 << 30, gpt2_like) == 8
    assert crew.choose_num_workers(3, 8, 1000, gpt2_like) == 3
    assert crew.choose_num_workers(3, 8, 1000, slow) == 1  # its class is known here only


# --- what changed ---


class Notes:
    def __init__(self):
        self.said = []

    def begin(self, *_):
        pass

    def update(self, *_):
        pass

    def end(self):
        pass

    def note(self, text):
        self.said.append(text)


def test_a_set_that_is_made_again_says_what_changed(write, tmp_path, gpt2_like, llama_like):
    def said(tokenizer=gpt2_like, **changed):
        notes = Notes()
        preparation([tmp_path / "a.jsonl"], tokenizer, tmp_path / "p", progress=notes, **changed).prepare()
        return notes.said

    write("a.jsonl", ["one"])
    assert said() == []
    assert said() == []
    assert said(max_seq_length=32) == ["prepared anew, because data.max_seq_length was 64 and is 32"]
    write("a.jsonl", ["two"])
    assert said(max_seq_length=32) == [f"prepared anew, because {tmp_path / 'a.jsonl'} changed"]
    assert said(llama_like, max_seq_length=32) == ["prepared anew, because the tokenizer changed"]


def test_files_may_be_moved(write, tmp_path, gpt2_like):
    first = preparation([write("a.jsonl", ["one"])], gpt2_like, tmp_path / "p").prepare()
    again = preparation([write("b.jsonl", ["one"])], gpt2_like, tmp_path / "p").prepare()
    assert first.folder == again.folder

"""The report on a prepared set: what is told of the rows, and of which side of a divided set."""

import json

import pytest
from data_sources import preparation

from megatune.data import jsonfiles
from megatune.data.notices import num_leaked, shared_notices, split_notices
from megatune.data.quality import report_lines
from megatune.data.quality_picture import draw_or_tell
from megatune.tasks import TaskOptions


@pytest.fixture
def write_rows(tmp_path):
    """`write_rows(rows) -> Path` of a file of them."""

    def run(rows, name="a.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return run


def test_the_report_tells_what_the_rows_are_like(tmp_path, gpt2_like, monkeypatch):
    monkeypatch.setattr(jsonfiles, "BLOCK_BYTES", 200)
    rows = [{"prompt": f"{i} is", "completion": " even" if i % 2 == 0 else " odd"} for i in range(40)]
    rows += [rows[0], rows[0], {"prompt": " ", "completion": " odd"}, {"prompt": "x", "completion": " "}]
    rows += [{"prompt": "2 + 2 = " * 4 + str(i), "completion": " even"} for i in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    report = preparation([path], gpt2_like, tmp_path / "p").prepare().report
    assert (report.num_rows_read, report.num_usable, report.num_empty) == (47, 46, 1)
    assert (report.num_duplicates, report.num_without_input) == (2, 1)
    assert report.labels == {" even".strip(): 25, "odd": 21}
    assert sum(report.length_counts) == 46
    assert len(report.longest) == 10
    assert [place for _, *place in report.longest[:3]] == [
        [str(path), row, 2 * row - 1] for row in (45, 46, 47)
    ]
    assert any("2 of 47 rows say the same as a row before them" in notice for notice in report.notices(64))


def test_answers_that_differ_in_case_alone_are_told(tmp_path, gpt2_like):
    path = tmp_path / "a.jsonl"
    answers = ["Earn", "acq", "earn", "grain"]
    path.write_text("".join(json.dumps({"prompt": "x", "completion": f" {one}"}) + "\n" for one in answers))
    notices = preparation([path], gpt2_like, tmp_path / "p").prepare().report.notices(64)
    assert "answers that differ in nothing but case are told apart: 'Earn', 'earn'" in notices


def test_ids_that_come_twice_are_told(tmp_path, gpt2_like):
    path = tmp_path / "a.jsonl"
    ids = [1, 2, "1", 2, None, None, "x", "x", "x"]
    path.write_text("".join(json.dumps({"id": found, "text": f"t{i}"}) + "\n" for i, found in enumerate(ids)))
    report = preparation([path], gpt2_like, tmp_path / "p").prepare().report
    assert report.num_duplicate_ids == 4, "a table has 1 as a text"
    told = f"4 of 9 rows have the id of a row before them; the first: {path}:3 (row 3), as {path}:1 (row 1)"
    assert told in report.notices(64)


def test_many_different_answers_are_no_classes(tmp_path, gpt2_like):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "completion": f" {i}"}) + "\n" for i in range(201)))
    assert preparation([path], gpt2_like, tmp_path / "p").prepare().report.labels is None


def test_answers_of_divided_rows_are_counted_on_the_side_that_they_are_on(write_rows, tmp_path, gpt2_like):
    """Equal rows stay together, so that one side may lose an answer altogether."""
    rows = [{"prompt": one, "completion": f" {one}"} for one in "ab" for _ in range(6)]
    rows.append({"prompt": "", "completion": " a"})
    made = preparation([write_rows(rows)], gpt2_like, tmp_path / "p", val_size=6, seed=3).prepare_both()

    train, validation = (one.report for one in made)

    assert (train.labels, train.num_without_input) == ({"a": 7}, 1)
    assert (validation.labels, validation.num_without_input) == ({"b": 6}, 0)


def test_answers_are_lopsided_by_the_rows_that_are_trained_on(write_rows, tmp_path, gpt2_like):
    """Forty to three before the rows are divided, twenty to three after."""
    rows = [{"prompt": f"{n}", "completion": " often"} for n in range(40)]
    rows += [{"prompt": f"{n} x", "completion": " seldom"} for n in range(3)]
    path = write_rows(rows)

    whole = preparation([path], gpt2_like, tmp_path / "p").prepare().report
    train, _ = preparation([path], gpt2_like, tmp_path / "p", val_size=20, seed=7).prepare_both()

    assert any("'often' comes 40 times, 'seldom' 3" in notice for notice in whole.notices(64))
    assert train.report.labels == {"often": 20, "seldom": 3}
    assert not any("lopsided" in notice for notice in train.report.notices(64))


@pytest.mark.parametrize("long_rows", ["truncate", "drop"])
def test_rows_that_were_dropped_are_among_the_lengths_and_the_longest(
    write_rows, tmp_path, gpt2_like, long_rows
):
    rows = [{"prompt": "word " * 80, "completion": " a"} for _ in range(9)]
    rows += [{"prompt": "short", "completion": " b"}, {"prompt": "none", "completion": ""}]
    path = write_rows(rows)

    report = preparation([path], gpt2_like, tmp_path / "p", long_rows=long_rows).prepare().report

    assert (report.num_too_long, report.num_empty, report.length_counts[-1]) == (9, 1, 9)
    assert sum(report.length_counts) == 10
    whole = len(gpt2_like(f"{'word ' * 80} a").input_ids) + 1
    assert report.longest[:9] == [(whole, str(path), n, n) for n in range(1, 10)]
    lines = report_lines("train", report, 64)
    assert any(line.split()[:3] == ["over", "64", "9"] for line in lines)
    (longest,) = (line for line in lines if "longest" in line)
    assert longest.count("(row ") == 10
    assert longest.count(str(path)) == 1, "the file is named once"


def test_dropped_rows_of_a_divided_set_are_told_with_the_training_rows(write_rows, tmp_path, gpt2_like):
    rows = [{"text": f"row {n}"} for n in range(10)] + [{"text": "word " * 200}]
    made = preparation([write_rows(rows)], gpt2_like, tmp_path / "p", val_size=3, long_rows="drop")

    train, validation = (one.report for one in made.prepare_both())

    assert (train.length_counts[-1], validation.length_counts[-1]) == (1, 0)
    assert train.longest[0][2:] == (11, 11)
    assert (train.num_too_long, validation.num_too_long) == (1, 0)


def test_an_id_in_two_splits_is_named_with_both_places(write_rows, tmp_path, gpt2_like):
    train = write_rows([{"id": n, "text": f"t{n}"} for n in range(5)])
    held_out = write_rows([{"id": n, "text": f"v{n}"} for n in (9, 3, 4)] + [{"text": "no id"}], "b.jsonl")
    (tmp_path / "c.jsonl").write_text('\n{"id": 9, "text": "other"}\n')
    sets = {
        name: preparation([path], gpt2_like, tmp_path / "p", split_name=name).prepare()
        for name, path in (("train", train), ("validation", held_out), ("test", tmp_path / "c.jsonl"))
    }

    assert split_notices(sets) == [
        f"validation: 2 rows have the id of a row of train; the first: {held_out}:2 (row 2), as {train}:4 (row 4)",
        f"test: 1 row has the id of a row of validation; the first: {tmp_path / 'c.jsonl'}:2 (row 1), as "
        f"{held_out}:1 (row 1)",
    ]


def test_a_file_whose_name_has_two_blanks_keeps_them(write_rows, tmp_path, gpt2_like):
    path = write_rows([{"text": "a b c"}, {"text": "a"}], "a  b (row 3).jsonl")

    report = preparation([path], gpt2_like, tmp_path / "p").prepare().report

    (longest,) = (line for line in report_lines("train", report, 64) if "longest" in line)
    (first, *_), (second, *_) = report.longest
    assert longest == f"  longest: {first} {path}:1 (row 1); {second} :2 (row 2)"


def two_sets(write_rows, tmp_path, tokenizer):
    train = write_rows([{"id": n, "text": f"t{n}"} for n in range(5)])
    held_out = write_rows([{"id": n, "text": f"t{n}"} for n in (9, 3, 4)], "b.jsonl")
    return {
        name: preparation([path], tokenizer, tmp_path / "p", split_name=name).prepare()
        for name, path in (("train", train), ("validation", held_out))
    }


def test_rows_in_two_splits_are_looked_for_once(write_rows, tmp_path, gpt2_like, monkeypatch):
    sets = two_sets(write_rows, tmp_path, gpt2_like)
    told = split_notices(sets)
    assert told[0] == "validation: 2 rows say what a training row says: the scores show memory there"
    assert "2 rows have the id of a row of train" in told[1]

    def read_again(*_):
        raise AssertionError("the hashes are read again")

    with monkeypatch.context() as patch:
        patch.setattr("megatune.data.overlaps.num_shared", read_again)
        assert split_notices(sets) == told
        assert num_leaked(sets) == {"validation": 2}
    sets["train"].verify()
    sets["validation"].verify()
    (kept,) = sets["validation"].folder.glob("shared-with-*.json")
    kept.write_text('{"num_rows": 7')
    assert split_notices(sets) == told, "a damaged file is none"


def test_rows_in_two_splits_are_told_where_nothing_can_be_kept(write_rows, tmp_path, gpt2_like, capsys):
    sets = two_sets(write_rows, tmp_path, gpt2_like)
    (sets["validation"].folder / f"shared-with-{sets['train'].fingerprint}.json").mkdir()

    assert num_leaked(sets) == {"validation": 2}
    assert "looked for again next time" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_told_in_a_line(write_rows, tmp_path, gpt2_like, capsys):
    sets = two_sets(write_rows, tmp_path, gpt2_like)
    target = tmp_path / "data.png"
    target.mkdir()

    draw_or_tell(sets, target)

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("megatune: the picture of the data is not drawn: ")
    assert str(target) in line
    assert not list(tmp_path.glob(".data.png*"))


def test_blank_cells_are_no_ids_and_a_number_is_the_id_that_a_table_writes_as_text(tmp_path, gpt2_like):
    table, lines = tmp_path / "a.csv", tmp_path / "b.jsonl"
    table.write_text("id,text\n,one\n ,two\n1,three\n,four\n")
    lines.write_text('{"id": 1, "text": "five"}\n{"id": null, "text": "six"}\n{"id": "", "text": "seven"}\n')

    report = preparation([table, lines], gpt2_like, tmp_path / "p").prepare().report

    assert report.num_duplicate_ids == 1
    assert report.first_duplicate_id == (f"{lines}:1 (row 1)", f"{table}:4 (row 3)")


def test_answers_that_the_font_cannot_draw_are_no_matter_of_the_terminal(tmp_path, gpt2_like, recwarn):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": "which?", "completion": answer} for answer in ("是", "否", "\U0001f600") * 3]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    draw_or_tell({"train": preparation([path], gpt2_like, tmp_path / "p").prepare()}, tmp_path / "data.png")

    assert (tmp_path / "data.png").is_file()
    assert [str(warning.message) for warning in recwarn] == []


def test_ids_of_a_divided_set_are_told_on_their_side_with_their_places(write_rows, tmp_path, gpt2_like):
    path = write_rows([{"id": n % 10, "text": f"t{n}"} for n in range(40)])
    made = preparation([path], gpt2_like, tmp_path / "p", val_size=20, seed=2).prepare_both()

    for one in made:
        numbers = one.arrays["row_numbers"].tolist()
        ids = [(number - 1) % 10 for number in numbers]
        later = next(at for at in range(len(ids)) if ids[at] in ids[:at])
        first = numbers[ids.index(ids[later])]
        assert one.report.num_duplicate_ids == len(ids) - len(set(ids))
        places = tuple(f"{path}:{number} (row {number})" for number in (numbers[later], first))
        assert one.report.first_duplicate_id == places
    train, validation = (set(one.arrays["row_numbers"].tolist()) for one in made)
    assert (train | validation, train & validation) == (set(range(1, 41)), set())


def test_rows_that_are_longer_than_their_answers_allow_are_told_loudly(write_rows, tmp_path, gpt2_like):
    rows = [{"text": f"{n}", "label": "a" if n % 2 else "b"} for n in range(20)]
    few = write_rows([*rows, {"text": "word " * 80, "label": "a"}])
    lost = write_rows([*rows, *[{"text": "word " * 80, "label": one} for one in "acd"]], "lost.jsonl")
    most = write_rows([{"text": "word " * (80 if n else 1), "label": "a"} for n in range(3)], "most.jsonl")

    def first_notice(path, **changed):
        options = TaskOptions(labels=("a", "b", "c", "d"))
        made = preparation(
            [path], gpt2_like, tmp_path / "p", task="classification", options=options, **changed
        )
        return made.prepare().report.notices(64)[0]

    assert first_notice(few).endswith(f"begins after 64 tokens; the first is {few}:21 (row 21)")
    assert first_notice(few).startswith("1 of 21 rows were dropped")
    loud = first_notice(lost)
    assert loud.startswith("WARNING: 3 of 23 rows were dropped")
    assert f"the first is {lost}:21 (row 21). No row is left with the answer 'c', 'd'. To keep them" in loud
    longest = max(len(gpt2_like("word " * 80 + f"\nLabel: {one}").input_ids) + 1 for one in "acd")
    assert (
        f"data.truncation_side: left), raise data.max_seq_length (the longest has {longest} tokens)" in loud
    )
    assert "put less before the answer (data.template)" in loud
    assert first_notice(most).startswith("WARNING: 2 of 3 rows were dropped")
    assert "No row is left" not in first_notice(most)
    assert "dropped" not in first_notice(lost, truncation_side="left")


def test_held_out_answers_that_no_training_row_has_are_told_where_answers_are_classes(
    write_rows, tmp_path, gpt2_like
):
    rows = [{"prompt": one, "completion": f" {one}"} for one in "ab" for _ in range(6)]
    classes = preparation([write_rows(rows)], gpt2_like, tmp_path / "p", val_size=6, seed=3).prepare_both()
    rows = [{"prompt": f"{n}?", "completion": f" {n}"} for n in range(12)]
    texts = preparation([write_rows(rows)], gpt2_like, tmp_path / "p", val_size=6, seed=3).prepare_both()

    told, silent = (shared_notices({"train": one, "validation": other}) for one, other in (classes, texts))

    assert told == ["WARNING: validation: no training row has the answer 'b'"]
    assert silent == []

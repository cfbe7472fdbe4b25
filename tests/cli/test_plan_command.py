"""`megatune plan` through the real command line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command_line import Done, assert_refused, megatune

from megatune.cli.plan import PlanOptions, plan_run
from megatune.config import load_run
from megatune.plan.auto import fill_auto
from megatune.plan.hardware import accelerator_named
from megatune.plan.question import Machine, layout_of, make_question

MODEL = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257,
         "n_positions": 1024}  # fmt: skip
FREE = tuple(
    f"{key}=auto"
    for key in (
        "parallel.tp_size",
        "parallel.zero_stage",
        "parallel.offload",
        "train.per_device_train_batch_size",
    )
)


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    """A run file whose model is a folder with config.json alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    path = tmp_path / "run.yaml"
    run = {
        "model": {"model_name_or_path": str(folder)},
        "data": {"task": "text", "train": "rows.jsonl", "max_seq_length": 1024},
        "train": {"output_dir": str(tmp_path / "out"), "global_batch_size": 64, "max_steps": 1000},
        "slurm": {"nodes": 4, "gpus_per_node": 8, "time": "01:00:00"},
    }
    path.write_text(yaml.safe_dump(run))
    return path


def answer(done: Done) -> dict:
    assert done.code == 0, done.text
    return json.loads(done.out)


def test_the_answer_is_one_json_object_on_standard_output(planned):
    found = answer(megatune("plan", planned, "--gpu", "a100-40gb", "--json"))
    assert found["schema"] == 1
    assert found["model"]["num_params"] == 1_557_611_200
    assert found["layout"]["tp"] * found["layout"]["dp"] == 32
    assert found["fits"] is True
    assert found["memory"]["device_limit_bytes"] == 40 * 2**30
    assert found["time"]["step_seconds"] > 0
    assert found["rejected"] and found["pareto"]
    assert found["forecast"]["num_jobs"] == 1
    assert found["forecast"]["cost"] is None


def test_people_see_tables(planned):
    done = megatune("plan", planned, "--gpu", "a100-40gb", "--price", "2")
    assert done.code == 0, done.text
    for word in ("layout: tp=", "activations", "host memory of one node", "rejected", "cost"):
        assert word in done.text


def test_options_win_over_the_run_file(planned):
    options = ("--nodes", "2", "--gpus-per-node", "4", "--gpu", "h100-80gb", "--json")
    found = answer(megatune("plan", planned, *options))
    assert (found["devices"]["name"], found["devices"]["count"], found["devices"]["per_node"]) == (
        "h100-80gb",
        8,
        4,
    )


def test_a_layout_is_judged_as_given(planned):
    asked = "tp=4,dp=8,micro_batch=2,accumulation=4,gradient_checkpointing=true,offload=optimizer"
    found = answer(megatune("plan", planned, "--gpu", "a100-40gb", "--layout", asked, "--json"))
    assert found["layout"] == {
        "tp": 4, "dp": 8, "micro_batch": 2, "accumulation": 4, "gradient_checkpointing": True,
        "offload": "optimizer", "zero_stage": 3,
    }  # fmt: skip


def test_a_layout_that_does_not_fit_is_told_with_the_nearest_that_do(planned):
    asked = "tp=1,dp=32,micro_batch=64"
    done = megatune("plan", planned, "--gpu", "a100-40gb", "--layout", asked, "--json")
    assert json.loads(done.out)["fits"] is False
    assert_refused(done, "more than the 40.00 GiB", "Nearest layouts that fit")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("tp=3", ["tp 3 x dp 10 = 30", "32 devices"]),
        ("tp=0,banana=1,offload=nvme", ["3 problems", "tp = 0", "banana", "none, optimizer, all, or nvme:"]),
    ],
)
def test_a_layout_that_is_none_is_refused(planned, asked, words):
    assert_refused(megatune("plan", planned, "--gpu", "a100-40gb", "--layout", asked), *words)


@pytest.mark.parametrize(
    ("config", "asked", "overrides", "word"),
    [
        ({"n_head": 2, "n_embd": 1024}, "tp=8", (), "2 attention head(s)"),
        ({"model_type": "cohere", "use_qk_norm": True, "intermediate_size": 4096}, "tp=4", (), "use_qk_norm"),
        ({}, "zero_stage=1,offload=all", (), "parallel.zero_stage 3 or higher"),
        ({}, "zero_stage=0,offload=optimizer", (), "parallel.zero_stage 1 or higher"),
        ({}, "tp=2", ("deepspeed=ds_configs/zero3_hpz.json",), "mix the ranks of tensor-parallel groups"),
        ({}, "tp=8,tp=2", (), "tp is given 2 times"),
    ],
)
def test_a_layout_that_no_start_would_train_is_refused_and_not_written(
    planned, tmp_path, config, asked, overrides, word
):
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | config))
    done = megatune("plan", planned, *overrides, "--gpu", "a100-40gb", "--layout", asked, "--write")
    assert_refused(done, word)
    assert not (tmp_path / "out").exists()


def test_groups_that_lie_on_several_nodes_are_judged_with_a_note(planned, tmp_path):
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | {"n_head": 32, "n_embd": 2048}))
    found = answer(megatune("plan", planned, "--gpu", "h100-80gb", "--layout", "tp=16", "--json"))
    assert any("several nodes of 8" in note for note in found["notes"])
    slower = [reason for reason in found["reasons"] if reason.startswith("tensor_parallel")]
    assert slower
    assert all("faster at best" in reason for reason in slower), "by the token"


def test_groups_over_nodes_are_planned_where_the_run_file_asks_for_them_and_no_other_degree_will_do(
    planned, tmp_path
):
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | {"n_head": 32, "n_embd": 2048}))
    options = ("slurm.nodes=2", "train.global_batch_size=1", "--gpu", "h100-80gb", "--json")
    found = answer(megatune("plan", planned, "parallel.tp_size=16", *options))
    assert (found["layout"]["tp"], found["free"]) == (16, None)
    assert any("several nodes" in note for note in found["notes"])
    assert_refused(megatune("plan", planned, *FREE, *options), "global_batch_size = 2 (tp=8 dp=2)")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("parallel.tp_size=5",),
        ("parallel.zero_stage=0",),
        ("parallel.offload=nvme:/scratch",),
        ("parallel.offload=all", "train.per_device_train_batch_size=auto"),
        ("parallel.tp_size=auto", "parallel.zero_stage=1"),
        FREE,
    ],
)
def test_what_is_recommended_is_what_a_start_would_take(planned, overrides):
    options = ("--nodes", "1", "--gpus-per-node", "20", "train.global_batch_size=120", "slurm=null")
    found = answer(megatune("plan", planned, *overrides, *options, "--gpu", "h100-80gb", "--json"))

    loaded = load_run(planned, [*overrides, "train.global_batch_size=120", "slurm=null"])
    machine = Machine(nodes=1, ranks_per_node=20, accelerator=accelerator_named("h100-80gb"))
    choice = fill_auto(loaded.run, loaded.auto, make_question(loaded.run, MODEL, machine, {}))
    assert choice is not None
    assert found["layout"] == layout_of(choice.run, 20).to_json()
    assert set(found["open"]) == set(choice.keys)


def test_fixed_keys_are_named_with_what_they_cost(planned):
    done = megatune("plan", planned, "parallel.tp_size=8", "--gpu", "h100-80gb")
    assert done.code == 0, done.text
    assert "fixed: parallel.tp_size=8 (command line), parallel.zero_stage=3 (default)" in done.text
    assert "auto leaves a key to the planner" in done.text
    options = ("parallel.tp_size=8", "--gpu", "h100-80gb", "--json")
    found = answer(megatune("plan", planned, *options))
    assert found["fixed"]["parallel.tp_size"] == {"value": 8, "from": "command line"}
    best = answer(megatune("plan", planned, *FREE, "--gpu", "h100-80gb", "--json"))
    assert found["free"]["layout"] == best["layout"]
    assert best["free"] is None
    assert f"with every key free: tp={best['layout']['tp']} " in done.text
    assert "faster; it takes parallel.tp_size=1" in done.text or " times faster" in done.text


def test_fixed_keys_that_do_not_fit_say_what_would(planned):
    done = megatune("plan", planned, "train.per_device_train_batch_size=64", "--gpu", "a100-40gb", "--nodes",
                    "1", "--gpus-per-node", "1", "slurm=null", "parallel.zero_stage=0")  # fmt: skip
    assert_refused(done, "with every key free: tp=1 dp=1", "fits; it takes", "Nearest layouts that fit")


def test_fixed_keys_that_cannot_be_trained_say_what_would(planned, tmp_path):
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | {"n_head": 2, "n_embd": 1024}))
    done = megatune("plan", planned, "parallel.tp_size=4", "--gpu", "a100-40gb")
    assert_refused(done, "2 attention head(s)", "with every key free:", "parallel.tp_size=")


def test_where_only_the_batch_does_not_divide_the_layouts_are_in_the_usual_notation(planned):
    done = megatune("plan", planned, *FREE, "--gpu", "h100-80gb", "--nodes", "1250")
    assert_refused(
        done, "tp=1 dp=10000: the global batch of 64", "Batches that divide", "1250 (tp=8 dp=1250)"
    )
    assert "{'tp'" not in done.text


def test_steps_are_counted_from_prepared_data(run_file, tiny_gpt2, rows_file):
    """Once the files are so old that their times tell whether they were written to again."""
    options = ("train.max_steps=null", "train.num_train_epochs=3", "precision=bf16")
    machine = ("--gpu", "h100-80gb", "--nodes", "1", "--gpus-per-node", "1", "--json")
    newest = max(path.stat().st_ctime for path in (rows_file, *tiny_gpt2.iterdir()))
    time.sleep(max(0.0, newest + 2.1 - time.time()))
    before = answer(megatune("plan", run_file, *options, *machine))
    assert before["forecast"]["num_steps"] is None
    assert any("megatune prepare" in note for note in before["notes"])

    prepared = json.loads(megatune("prepare", run_file, *options, "--json").out)
    after = answer(megatune("plan", run_file, *options, *machine))

    assert after["forecast"]["num_steps"] == 3 * prepared["splits"]["train"]["num_rows"]
    assert after["forecast"]["total_s"] == pytest.approx(
        after["forecast"]["num_steps"] * after["time"]["step_seconds"]
    )
    assert not any("megatune prepare" in note for note in after["notes"])


def test_submit_forecasts_the_whole_run_as_plan_does(run_file, tiny_gpt2, rows_file, tmp_path):
    (tmp_path / "site.yaml").write_text("gpu: h100-80gb\n")
    options = ("train.max_steps=null", "train.num_train_epochs=3", "precision=bf16", "slurm.nodes=1",
               "slurm.gpus_per_node=1", f"slurm.site={tmp_path}/site.yaml", "slurm.time=01:00:00",
               "slurm.cpus_per_task=4")  # fmt: skip
    newest = max(path.stat().st_ctime for path in (rows_file, *tiny_gpt2.iterdir()))
    time.sleep(max(0.0, newest + 2.1 - time.time()))
    before = megatune("submit", run_file, *options, "--dry-run")
    assert "whole run: n/a (it needs train.max_steps, or prepared data" in before.text
    unknown = answer(megatune("submit", run_file, *options, "--dry-run", "--json"))["plan"]
    assert any("no whole-run figures" in note for note in unknown["notes"])

    assert megatune("prepare", run_file, *options).code == 0
    planned = answer(megatune("plan", run_file, *options, "--gpu", "h100-80gb", "--json"))
    submitted = answer(megatune("submit", run_file, *options, "--dry-run", "--json"))["plan"]

    assert submitted["forecast"] == planned["forecast"]
    assert submitted["forecast"]["total_s"] > 0
    chained = megatune("submit", run_file, *options, "--dry-run", "--chain", "auto")
    assert "by the planner's forecast" in chained.text


def test_without_steps_a_note_says_what_is_missing(planned):
    done = megatune("plan", planned, "train.max_steps=null", "--gpu", "a100-40gb")
    assert done.code == 0, done.text
    assert "whole run: n/a" in done.text
    assert "no whole-run figures: they need train.max_steps" in done.text


def test_offload_into_host_memory_that_nobody_knows_is_noted(planned):
    options = ("parallel.offload=all", "--gpu", "h100-80gb", "--json")
    (note,) = [each for each in answer(megatune("plan", planned, *options))["notes"] if "host memory" in each]
    assert "is not known: give slurm.mem" in note
    known = answer(megatune("plan", planned, *options, "slurm.mem=900G"))
    assert not any("host memory" in each for each in known["notes"])


def test_the_gpu_is_asked_for_and_never_guessed(planned):
    assert_refused(megatune("plan", planned), "--gpu", "a100-80gb", "h100-80gb", "cpu")
    assert_refused(megatune("plan", planned, "--gpu", "gtx"), "gtx", "a100-80gb")


def test_ranks_of_a_machine_without_gpus_are_no_gpus(planned, tmp_path):
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | {"n_layer": 2, "n_embd": 100}))
    options = ("slurm=null", "launch.nproc_per_node=2", "--json")
    found = answer(megatune("plan", planned, *options, DS_ACCELERATOR="cpu"))
    assert (found["devices"]["name"], found["devices"]["count"]) == ("cpu", 2)
    elsewhere = megatune("plan", planned, *options, "--nodes", "4", DS_ACCELERATOR="cpu")
    assert_refused(elsewhere, "which GPU is it?", "cpu plans for machines without GPUs")


@pytest.mark.parametrize(("cores", "tp_size", "ranks"), [(7, 5, 5), (2, 5, 5), (6, 1, 6)])
def test_this_machine_is_planned_with_the_ranks_that_train_starts(
    planned, tmp_path, monkeypatch, capsys, cores, tp_size, ranks
):
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | {"n_layer": 2, "n_embd": 100}))
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(cores)))
    options = PlanOptions(nodes=None, gpus_per_node=None, gpu=None, layout=None, lengths=None,
                          price_per_gpu_hour=None, write=False, as_json=True)  # fmt: skip
    own_batch = ["slurm=null", "train.global_batch_size=null", f"parallel.tp_size={tp_size}"]
    plan_run(planned, own_batch, options)
    found = json.loads(capsys.readouterr().out)
    assert (found["devices"]["name"], found["devices"]["count"]) == ("cpu", ranks)
    assert found["layout"]["tp"] == tp_size


def test_nodes_without_gpus_have_the_ranks_that_the_run_file_gives_them(planned):
    options = ("slurm.gpus_per_node=0", "slurm.nodes=2", "slurm.mem=256G", "launch.nproc_per_node=32")
    found = answer(megatune("plan", planned, *options, "--json"))
    assert (found["devices"]["count"], found["devices"]["per_node"]) == (64, 32)


def test_machines_without_gpus_are_planned_by_their_memory(planned):
    options = ("slurm.gpus_per_node=0", "slurm.mem=256G", "--gpus-per-node", "0", "--json")
    found = answer(megatune("plan", planned, *options, "slurm.nodes=1"))
    assert found["devices"]["name"] == "cpu"
    ranks = found["devices"]["per_node"]
    assert found["memory"]["device_limit_bytes"] == 256 * 2**30 // ranks
    assert found["time"]["step_seconds"] is None


def test_write_leaves_the_plan_and_deepspeeds_configuration_in_the_run_folder(planned, tmp_path):
    answer(megatune("plan", planned, "--gpu", "a100-40gb", "--json"))
    assert not (tmp_path / "out").exists()
    found = answer(megatune("plan", planned, "--gpu", "a100-40gb", "--json", "--write"))
    assert json.loads((tmp_path / "out/plan.json").read_text()) == found
    written = json.loads((tmp_path / "out/ds_config.json").read_text())
    assert written["train_micro_batch_size_per_gpu"] == found["layout"]["micro_batch"]
    assert written["gradient_accumulation_steps"] == found["layout"]["accumulation"]


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_links_that_the_doctor_measured_between_gpus_are_used(planned, tmp_path, backend):
    before = answer(megatune("plan", planned, "--gpu", "a100-40gb", "--json"))
    slow = {"latency_s": 1e-3, "bytes_per_s": 1e9, "num_points": 9}
    links = {"measured_at": "2026-01-31T12:00:00Z", "backend": backend, "num_nodes": 4, "intra_node": slow,
             "inter_node": slow}  # fmt: skip
    (tmp_path / "out").mkdir()
    (tmp_path / "out/doctor.json").write_text(json.dumps({"links": links}))

    after = answer(megatune("plan", planned, "--gpu", "a100-40gb", "--json"))

    measured = backend == "nccl"
    assert after["devices"]["links_measured_at"] == (links["measured_at"] if measured else None)
    assert (after["time"]["step_seconds"] > 2 * before["time"]["step_seconds"]) is measured


def test_a_model_that_is_not_here_is_named(planned):
    done = megatune("plan", planned, "model.model_name_or_path=nobody/nothing", "--gpu", "a100-40gb")
    assert_refused(done, "nobody/nothing", "config.json")


@pytest.mark.parametrize("overrides", [[], ["train.max_steps=null"]])
def test_a_plan_loads_no_heavy_package(planned, overrides):
    code = (
        "import json, sys; from megatune.cli.plan import *; "
        "options = PlanOptions(nodes=None, gpus_per_node=None, gpu='a100-40gb', layout=None, lengths=None, "
        "price_per_gpu_hour=None, write=False, as_json=True); "
        f"plan_run(Path({str(planned)!r}), {overrides}, options); "
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr.strip().splitlines()[-1])}
    assert not loaded & {"torch", "transformers", "datasets", "deepspeed", "accelerate"}


def test_sequence_lengths_are_compared_at_the_same_tokens_a_step(planned):
    options = (*FREE, "--gpu", "a100-40gb", "--json")
    found = answer(megatune("plan", planned, *options, "--seq", "512,1024,2048,1000"))

    short, own, long, odd = found["lengths"]
    assert found["tokens_per_step"] == 64 * 1024
    for one, sequences in ((short, 128), (own, 64), (long, 32)):
        layout = one["layout"]
        assert layout["dp"] * layout["micro_batch"] * layout["accumulation"] == sequences
    assert own["time"] == answer(megatune("plan", planned, *options))["time"]
    assert short["time"]["step_seconds"] < own["time"]["step_seconds"], "less attention"
    assert long["remark"] == "beyond the model's 1024 positions"
    assert (odd["layout"], odd["remark"]) == (None, "the 65536 tokens of a step are no multiple of it")


def test_lengths_keep_what_the_run_file_fixes(planned):
    options = ("plan", planned, "parallel.tp_size=5", "slurm.gpus_per_node=5", "--gpu", "a100-40gb")
    batch = ("train.global_batch_size=64", "--seq", "512,1024")
    found = answer(megatune(*options, *batch, "--json"))["lengths"]
    assert [one["layout"]["tp"] for one in found] == [5, 5]
    assert {one["layout"]["zero_stage"] for one in found} == {3}
    assert "fixed: parallel.tp_size=5 (command line)" in megatune(*options, *batch).text


def test_a_disk_whose_speed_nobody_said_is_told_beside_a_layout_with_a_time(planned):
    done = megatune("plan", planned, "parallel.offload=nvme:/scratch", "--gpu", "a100-40gb")
    assert done.code == 0, done.text
    assert "where the time of what is fixed is not known; it takes" in done.text


def test_a_length_that_nothing_fits_says_what_it_lacks(planned):
    batch, options = (
        "train.global_batch_size=1024",
        ("--nodes", "1", "--gpus-per-node", "1", "--gpu", "a100-40gb"),
    )
    (found,) = answer(megatune("plan", planned, batch, *options, "--seq", str(2**20), "--json"))["lengths"]
    assert found["remark"].startswith("no layout fits; the nearest, tp=1 dp=1 micro_batch=1")
    assert "more than the 40.00 GiB there are" in found["remark"]


@pytest.mark.parametrize("options", [("--seq", "1024,many"), ("--seq", "1024", "--write")])
def test_lengths_that_cannot_be_compared_are_refused(planned, options):
    done = megatune("plan", planned, "--gpu", "a100-40gb", *options)
    assert_refused(done, "--seq")

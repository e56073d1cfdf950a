"""Ablations: a stopped grid continues to the same table, runs are shared, records are kept."""

import json
import os
import signal

import ablation_records
import pytest
import torch
from helpers.ablations import FINETUNE, table
from helpers.common import TINY_DETECTOR, data_settings, run_two_processes

import ablation
from ablation import main
from lomar_det.checkpoint.serialization import load_plain
from lomar_det.engine.hooks import SeedEachStep
from lomar_det.errors import UserError
from lomar_pretrain.runs import pretrain as engine

KNN = {
    "recipe": "linear_lomar_vit_tiny",
    "downstream": [s.replace("model.", "model.encoder.") for s in FINETUNE] + ["train.knn=3"],
    "metric": "classification/knn_top1",
}


def started(capsys):
    """Folders of the runs that were started since this was last asked, two levels of each."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--- ")]
    return ["/".join(line.split("/")[-3:]) for line in lines]


def interrupt(monkeypatch, number):
    """SIGTERM in the third step of the run with this number."""
    before_step, started = SeedEachStep.before_step, []

    def and_signal(hook):
        before_step(hook)
        if hook.trainer.iter == hook.trainer.start_iter:
            started.append(hook.trainer.max_iter)
        if len(started) == number and hook.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SeedEachStep, "before_step", and_signal)


def test_a_stopped_grid_continues_to_the_same_table(ablate, tmp_path, monkeypatch, capsys):
    cells = {"lomar": {}, "more_windows": {"pretrain": {"overrides": ["model.num_windows=3"]}}}
    ablate(cells, "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 3)  # the second cell's pretraining
        with pytest.raises(SystemExit) as stop:
            ablate(cells, "cut")
    assert stop.value.code == 143
    cut = tmp_path / "cut"
    first = cut / "lomar" / "seed0" / "cell.json"
    finished = first.read_bytes()
    assert not (cut / "more_windows" / "seed0" / "cell.json").exists()
    assert table(cut)[0]["values"] and not table(cut)[1]["values"]  # one can look early
    stopped = json.loads((cut / "more_windows" / "seed0" / "pretrain" / "run.json").read_text())
    capsys.readouterr()
    records = ablate(cells, "cut")
    assert "continued: " in capsys.readouterr().out
    assert table(cut) == table(tmp_path / "whole") and first.read_bytes() == finished
    assert records[1]["pretrain"]["seconds"] > stopped["seconds"] > 0
    # 20 images of batch 4 are 5 steps, whatever an epoch of 16 images would round them to
    assert [row["pretrain_images"] for row in table(cut)] == ["20", "20"]
    weights = [
        load_plain(tmp_path / run / "more_windows" / "seed0" / "pretrain" / "model_final.pth")
        for run in ("cut", "whole")
    ]
    torch.testing.assert_close(weights[0]["model"], weights[1]["model"], rtol=0, atol=0)
    # a third time there is nothing left to do
    before = {path: path.stat().st_mtime_ns for path in cut.rglob("*.*") if path.parent != cut}
    assert ablate(cells, "cut") == records
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_the_same_pretraining_is_run_once_and_random_weights_not_at_all(ablate, tmp_path):
    cells = {"lomar": {}, "lomar_again": {}, "random": {"pretrain": None}, "left_out": None}
    opts = ["budget.images=8", "run.seeds=[0,1]"]
    first, second, random, *others = ablate(cells, "out", *opts, stage=KNN)
    assert first["value"] == second["value"] and others[0]["seed"] == 1
    assert first["pretrain"] == second["pretrain"] and random["pretrain"] is None
    folders = {path.parent.parent.name for path in (tmp_path / "out").glob("*/seed0/pretrain")}
    assert folders == {"lomar"}
    values = first["value"], others[0]["value"]
    row = table(tmp_path / "out")[0]
    assert float(row["mean"]) == pytest.approx(sum(values) / 2, abs=0.01)
    assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=0.01)
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "| random |" in text and "CPU cores" in text and str(tmp_path) not in text
    assert (tmp_path / "out" / "plot.png").stat().st_size > 0


def test_another_ablation_shares_the_pretraining(ablate, tmp_path, capsys):
    cells = {"random": {"pretrain": None}, "lomar": {}}
    opts = ["budget.images=8"]
    first = ablate(cells, "first", *opts, stage=KNN)
    assert started(capsys) == [
        "random/seed0/downstream",
        "lomar/seed0/pretrain",
        "lomar/seed0/downstream",
    ]
    opts.append(f"run.pretrain_dir={tmp_path / 'first'}")
    second = ablate(cells, "second", *opts)
    assert started(capsys) == ["random/seed0/downstream", "lomar/seed0/downstream"]
    assert second[1]["pretrain"] == first[1]["pretrain"] and "top1" in second[1]["metric"]
    assert not list((tmp_path / "second").rglob("pretrain"))
    weights = tmp_path / "first" / "lomar" / "seed0" / "pretrain" / "backbone_final.pth"
    log = (tmp_path / "second" / "lomar" / "seed0" / "downstream" / "log.txt").read_text()
    assert str(weights) in log
    # a further seed is pretrained there, too
    ablate(cells, "second", *opts, "run.seeds=[0,1]")
    assert started(capsys) == [
        "random/seed1/downstream",
        "lomar/seed1/pretrain",
        "lomar/seed1/downstream",
    ]
    assert (weights.parents[2] / "seed1" / "pretrain" / "run.json").is_file()
    cells["lomar"] = {"pretrain": {"overrides": ["model.num_windows=3"]}}
    changed = r"first.lomar.seed0.pretrain was .*model.num_windows was 2, and is 3.*pretrain_dir"
    with pytest.raises(UserError, match=changed):
        ablate(cells, "third", *opts)
    assert not started(capsys) and not (tmp_path / "third").exists()


def test_metrics_are_chosen_afterwards(ablate, tmp_path, capsys):
    """Table and plot follow; nothing is run again, and no record is touched."""
    cells = {"a": {"pretrain": None}, "b": {"pretrain": None}}
    ablate(cells, "out")
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.parent != out}
    plot, _ = (out / "plot.png").read_bytes(), capsys.readouterr()
    metrics = ["classification/top5", "classification/top1"]
    cells["b"]["downstream"] = {"metric": "classification/images"}
    records = ablate(cells, "out", f"downstream.metric=[{','.join(metrics)}]")
    assert not started(capsys)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.parent != out}
    assert [(row["cell"], row["metric"]) for row in table(out)] == [
        ("a", metrics[0]),
        ("a", metrics[1]),
        ("b", "classification/images"),
    ]
    for row, record in zip(table(out), (records[0], *records), strict=True):
        value = record["downstream"]["results"]["classification"][row["metric"].split("/")[1]]
        assert row["values"] == f"{value:.2f}"
    assert (out / "plot.png").read_bytes() != plot
    with pytest.raises(UserError, match="cell a: no metric .*knn_top1 .*classification/top1, "):
        ablate(cells, "out", "downstream.metric=[classification/top1,classification/knn_top1]")


def write_with_witness(args):
    """``main``; each file of the ablation's own that is written leaves a line with its process."""

    def witness(write):
        def and_note(record, path, *rest):
            with open(args.witness, "a") as file:
                file.write(f"{os.environ['RANK']}\n")
            return write(record, path, *rest)

        return and_note

    ablation_records.save_atomically = witness(ablation_records.save_atomically)
    ablation.write_table = witness(ablation.write_table)
    main(args)


def test_two_processes_make_one_table(ablate, tmp_path):
    """Over gloo: both train, one writes."""
    cells = {"random": {"pretrain": None}, "lomar": {}}
    opts = ["budget.images=8"]
    ablate(cells, "one", *opts)
    witness = tmp_path / "witness.txt"

    def start(args):
        args.witness = str(witness)
        run_two_processes(write_with_witness, args)

    ablate(cells, "two", *opts, start=start)
    written = witness.read_text().split()
    # three runs' records when they start, end and are dated, two of cells, a table after each
    assert written == ["0"] * (3 * 3 + 2 + 2)
    assert table(tmp_path / "two") == table(tmp_path / "one")
    log = (tmp_path / "two" / "lomar" / "seed0" / "pretrain" / "log.txt").read_text()
    assert "2 process(es)" in log
    lines = (tmp_path / "two" / "lomar" / "seed0" / "pretrain" / "metrics.json").read_text()
    assert [json.loads(line)["iteration"] for line in lines.splitlines()] == [0, 1]


def test_changed_settings_of_a_finished_cell_are_refused(ablate, tmp_path, monkeypatch):
    cells = {"random": {"pretrain": None}}
    record = ablate(cells, "out")[0]
    assert ablate(cells, "out", "budget.images=100") == [record]  # not this cell's
    stage = {"downstream": [*FINETUNE, "data.num_workers=1", "data.max_bad_fraction=0.5"]}
    assert ablate(cells, "out", stage=stage) == [record]
    stage = {"downstream": [*FINETUNE, "train.base_lr=0.1"]}
    with pytest.raises(UserError, match="random/seed0.*train.base_lr was 0.05, and is 0.1 now.*de"):
        ablate(cells, "out", stage=stage)
    with pytest.raises(UserError, match="random/seed0.*pretrain"):
        ablate({"random": {}}, "out")
    # of a run that was only begun, as well
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(SystemExit):
            ablate({"lomar": {}}, "begun")
    fewer = {"lomar": {"pretrain": {"overrides": ["model.num_windows=1"]}}}
    with pytest.raises(UserError, match="lomar/seed0.*pretrain.*model.num_windows was 2"):
        ablate(fewer, "begun")
    for path in (tmp_path / "begun").rglob("model_*.pth"):
        path.unlink()  # killed before its first checkpoint: there is nothing to mix
    assert ablate(fewer, "begun")[0]["pretrain"]["settings"]["model"]["num_windows"] == 1
    metrics = tmp_path / "begun" / "lomar" / "seed0" / "pretrain" / "metrics.json"
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_minutes_give_each_cell_the_same_time(ablate, tmp_path, monkeypatch, capsys):
    """A slower step makes for fewer of them; it is measured once."""
    read = engine.read_metrics

    def as_if_timed(path):
        return [line | {"time": 0.5 if "slow" in str(path) else 0.25} for line in read(path)]

    monkeypatch.setattr(engine, "read_metrics", as_if_timed)
    cells = {"fast": {}, "slow": {"pretrain": {"overrides": ["model.num_windows=3"]}}}
    cells["longer"] = cells["slow"] | {"budget": {"minutes": 0.1}}  # at its pace: not timed
    cells["few"] = {"budget": {"images": 8}}
    budget = ["budget.images=null", "budget.minutes=0.05"]
    records = ablate(cells, "out", *budget)
    assert [record["pretrain"]["images"] for record in records] == [12 * 4, 6 * 4, 12 * 4, 8]
    longer = tmp_path / "out" / "longer" / "calibration.json"
    assert longer.read_text() == (tmp_path / "out" / "slow" / "calibration.json").read_text()
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "| 0.1 minutes |" in text and "| 8 images |" in text
    calibration = json.loads((tmp_path / "out" / "slow" / "calibration.json").read_text())
    assert (calibration["seconds_per_step"], calibration["steps"]) == (0.5, 2)
    assert not (tmp_path / "out" / "slow" / "calibration").exists()
    monkeypatch.setattr(engine, "read_metrics", None)
    assert ablate(cells, "out", *budget) == records
    del cells["longer"], cells["few"]
    # nor once there are runs of that length, whatever settings are tried
    cells["slow"]["pretrain"]["overrides"] = ["model.num_windows=1"]
    for where in (["out"], ["other", f"run.pretrain_dir={tmp_path / 'out'}"]):
        with pytest.raises(UserError, match="out.slow was .*num_windows was 3.*pretrain_dir"):
            ablate(cells, *where, *budget)
    path = tmp_path / "out" / "slow" / "calibration.json"
    assert json.loads(path.read_text()) == calibration


def test_a_detector_downstream(ablate, drawn_set, tmp_path):
    stage = {"stage": "detection", "recipe": "mask_rcnn_lomar_vit_tiny"}
    stage["metric"] = ["bbox/AP50", "segm/AP"]
    stage["downstream"] = [*TINY_DETECTOR, *data_settings(*drawn_set), "train.max_iter=1"]
    absolute = ["model.backbone.net.rel_pos=none", "model.backbone.net.use_abs_pos=True"]
    cells = {
        "lomar_absolute": {
            "pretrain": {"overrides": ["model.rel_pos=False", "model.abs_pos=True"]},
            "downstream": {"overrides": absolute},
        }
    }
    record = ablate(cells, "out", "downstream.data=null", "budget.images=4", stage=stage)[0]
    assert record["value"] == record["downstream"]["results"]["bbox"]["AP50"]
    assert [row["metric"] for row in table(tmp_path / "out")] == stage["metric"]
    with pytest.raises(UserError, match="cell lomar_absolute: .*without iRPE.*rel_pos"):
        del cells["lomar_absolute"]["downstream"]
        ablate(cells, "fails", "downstream.data=null", "budget.images=4", stage=stage)


def test_damaged_records_and_missing_weights_are_named(ablate, tmp_path):
    cells, opts = {"a": {}}, ["budget.images=4"]
    ablate(cells, "out", *opts, stage=KNN)
    seed = tmp_path / "out" / "a" / "seed0"
    for path in (seed / "cell.json", seed / "pretrain" / "run.json"):
        whole = path.read_text()
        for content in (whole[:30], "[]", "3", "", '{"settings": {}}'):
            path.write_text(content)
            with pytest.raises(UserError, match=f"{path} cannot be used .*delete it"):
                ablate(cells, "out", *opts, stage=KNN)
        path.write_text(whole)
        (seed / "cell.json").unlink(missing_ok=True)  # with it, the other need not be read
    (seed / "downstream" / "run.json").unlink()
    (seed / "pretrain" / "backbone_final.pth").unlink()
    with pytest.raises(
        UserError, match="cell a: .*pretrain is done, but its backbone_final.pth is"
    ):
        ablate(cells, "out", *opts, stage=KNN)


def test_two_commands_do_not_share_a_run(ablate, tmp_path, monkeypatch):
    """One would delete what the other is writing."""
    cells, opts = {"a": {}}, ["budget.images=8", f"run.pretrain_dir={tmp_path / 'first'}"]
    before_step, refused = SeedEachStep.before_step, []

    def and_start_another(hook):
        before_step(hook)
        if not refused:
            refused.append(True)  # not in the other's steps, had it any
            with pytest.raises(UserError, match="cell a: another command .*first.a.seed0.pretrain"):
                ablate(cells, "second", *opts, stage=KNN)

    monkeypatch.setattr(SeedEachStep, "before_step", and_start_another)
    first = ablate(cells, "first", *opts, stage=KNN)
    assert refused
    second = ablate(cells, "second", *opts, stage=KNN)  # now it is free
    assert second[0]["pretrain"] == first[0]["pretrain"]

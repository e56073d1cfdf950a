"""The benchmarks run and report what they measured; the slow twin of pretraining."""

import json
import runpy
import sys
import time

import pytest
import torch
from detectron2.utils.events import EventStorage
from helpers.common import ROOT, TINY_DETECTOR, detector_batch, draw_instances
from PIL import Image

from lomar_det.benchmarks import format_rows, plot_result, saved_megabytes
from lomar_det.benchmarks.attention_speed import TINY_CASES, benchmark_attention, format_table
from lomar_det.benchmarks.breakdown import break_down
from lomar_det.benchmarks.detection_speed import benchmark_detection, format_detection
from lomar_det.config.lazy import load_config
from lomar_det.modeling.build import build_model
from lomar_pretrain import LoMaR
from lomar_pretrain.benchmarks.large_images import benchmark_large
from lomar_pretrain.benchmarks.literal import UsualLoMaR
from lomar_pretrain.benchmarks.loader_speed import LOADER_COLUMNS, benchmark_loader
from lomar_pretrain.benchmarks.pretrain_speed import CASES, STEP_COLUMNS, benchmark_pretrain

pytestmark = pytest.mark.run


def check(device, backends):
    result = benchmark_attention(torch.device(device), tiny=True)
    assert [row["backend"] for row in result["rows"]] == backends
    for row in result["rows"]:
        assert row["case"] in TINY_CASES and row["both"] > 0 and row["forward"] > 0
        assert row["spread"][0] <= row["both"] <= row["spread"][1]
    assert all(name in format_table(result) for name in backends)
    return result


def test_attention_on_a_cpu():
    assert "peak_gib" not in check("cpu", ["matmul", "eager"])["rows"][0]


@pytest.mark.parametrize(
    ("option", "name"), [("--json", ""), ("--plot", "none/plot.png"), ("--plot", "plot.docx")]
)
def test_a_file_that_cannot_be_written_is_named_before_measuring(
    tmp_path, monkeypatch, capsys, option, name
):
    tool, path = ROOT / "tools" / "benchmark.py", tmp_path / name
    monkeypatch.setattr(sys, "argv", [str(tool), "attention", "--tiny", option, str(path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tool), run_name="__main__")
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out and f"error: {option} {path}" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-workers", "-1"], "num_workers=-1"),
        (["--images-per-second", "nan"], "images_per_second=nan"),
        (["--plot", "x.svg", "--json", "./x.svg"], "x.svg"),
        (["--device", "quantum", "--json", "x.json"], "--device quantum"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, monkeypatch, capsys, options, message):
    tool = ROOT / "tools" / "benchmark.py"
    monkeypatch.setattr(sys, "argv", [str(tool), "loader", "--tiny", *options])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tool), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())  # no empty file that looks like a result


@pytest.mark.gpu
def test_attention_on_a_gpu():
    backends = ["flash, no bias", "cuDNN, no bias", "fused", "matmul", "eager"]
    rows = check("cuda", backends)["rows"]
    assert all(row["graph_both"] > 0 for row in rows if row["backend"] == "fused")


def test_pretraining_steps_on_a_cpu():
    result = benchmark_pretrain(torch.device("cpu"), tiny=True)
    assert [row["case"] for row in result["rows"]] == list(CASES)
    assert all(row["ms"] > 0 and row["TFLOP/s"] > 0 for row in result["rows"])
    assert result["rows"][0]["x usual"] == 1.0
    assert all(case in format_rows(result, STEP_COLUMNS) for case in CASES)


def test_memory_of_a_step_is_what_autograd_keeps():
    """An element-wise product keeps both factors, a view nothing more, a weight does not count."""
    model = torch.nn.Linear(4, 8, bias=False)
    x = torch.randn(1000, 4)

    def step():
        y = model(x)  # keeps x, and the weight
        (y.view(-1) * y.detach().exp().view(-1)).sum()  # keeps the exponential, and y not again

    assert saved_megabytes(step, model) == pytest.approx((4000 + 8000) * 4 / 1e6)


def test_loader_tells_the_cores_that_a_step_needs():
    result = benchmark_loader(num_workers=0, images_per_second=1000, tiny=True)
    for row in result["rows"]:
        assert row["cores"] == pytest.approx(1000 / row["img/s"])
    assert "cores" in format_rows(result, LOADER_COLUMNS)


def test_windows_of_large_images_next_to_their_regions():
    result = benchmark_large(num_workers=1, tiny=True)
    assert len(result["rows"]) == 4
    assert all(row["samples/s"] > 0 for row in result["rows"])
    assert all(0 < row["MB of a loader"] < 600 for row in result["rows"])


def test_detection_next_to_detectron2(tmp_path):
    result = benchmark_detection(torch.device("cpu"), tiny=True)
    rows, parts = result["rows"], result["parts"]
    assert [row["model"] for row in rows] == ["detectron2", "lomar_det"] * 3
    assert all(row["ms"] > 0 for row in rows)
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert ours["x detectron2"] == pytest.approx(ours["img/s"] / theirs["img/s"])
        assert ours["waits"] == theirs["waits"]  # the heads are the same
    for row in rows:
        own = [p for p in parts if (p["case"], p["model"]) == (row["case"], row["model"])]
        assert sum(part["share"] for part in own) == pytest.approx(1)
        assert sum(part["waits"] for part in own) == row["waits"]
        assert ("mask head" in [part["part"] for part in own]) == ("backbone" not in row["case"])
        assert any(part["backward"] > 0 for part in own) == ("inference" not in row["case"])
    text = format_detection(result)
    assert all(word in text for word in ("of ceiling", "spread", "ROIAlign"))
    with Image.open(plot_result(json.loads(json.dumps(result)), tmp_path / "plot.png")) as plot:
        assert plot.width > 1000


def test_the_time_goes_to_the_part_that_spends_it(tmp_path):
    """Forward, backward and waiting: each is seen where it is put, and nowhere else."""
    config = load_config(ROOT / "configs/custom/mask_rcnn_lomar_vit_tiny.py", TINY_DETECTOR)
    model = build_model(config)
    data = draw_instances(tmp_path, num_images=2)
    batch = detector_batch(data["images"], data["annotations"])

    def step():
        torch.manual_seed(0)
        with EventStorage():
            sum(model(batch).values()).backward()

    def profiled():
        step()
        return {row["part"]: row for row in break_down(model, step, torch.device("cpu"), 1)}

    plain = profiled()
    for part in ("ViT", "feature pyramid", "RPN head", "ROIAlign", "box head", "mask head"):
        assert plain[part]["forward"] > 0 and plain[part]["backward"] > 0
    assert plain["matching of proposals"]["backward"] == plain["ViT"]["waits"] == 0
    assert "forward" not in vars(model.backbone.net)  # the marks are gone again

    model.backbone.net.requires_grad_(False)
    model.roi_heads.box_head.fc1.register_forward_hook(lambda *args: time.sleep(0.3))
    model.roi_heads.mask_head.deconv.register_forward_hook(lambda *args: print(args[2].sum()))
    changed = profiled()
    assert changed["ViT"]["backward"] == 0 < changed["feature pyramid"]["backward"]
    assert changed["box head"]["forward"] > 300 > plain["box head"]["forward"]
    waits = {part: row["waits"] - plain[part]["waits"] for part, row in changed.items()}
    assert {part for part, more in waits.items() if more} == {"mask head"}


@pytest.mark.gpu
def test_the_time_of_kernels_goes_to_all_parts():
    result = benchmark_detection(torch.device("cuda"), tiny=True)
    assert [row["model"] for row in result["rows"][:3]] == [
        "detectron2",
        "lomar_det",
        "lomar_det, compiled",
    ]
    step = [p for p in result["parts"] if "training" in p["case"] and p["model"] == "lomar_det"]
    times = {part["part"]: (part["forward"], part["backward"]) for part in step}
    for part in ("ViT", "feature pyramid", "RPN head", "ROIAlign", "box head", "mask head"):
        assert min(times[part]) > 0
    assert times["optimizer"][0] > 0 and sum(part["waits"] for part in step) > 10
    assert all(0 < row["busy"] <= 1.2 for row in result["rows"])


def test_rows_of_every_kind_are_drawn(tmp_path):
    machine = {"device": "CPU"}
    attention = {"case": "small", "backend": "eager", "forward": 1.0, "both": 2.0}
    loader = {"case": "ours", "img/s": 100.0, "cores": None}
    for row in (attention | {"spread": [1.5, 2.5], "graph_both": None}, loader):
        plot = plot_result({"machine": machine, "rows": [row]}, tmp_path / "plot.png")
        assert plot.stat().st_size > 1000


@pytest.mark.parametrize("abs_pos", [False, True])
def test_the_usual_code_gives_the_same_loss_and_gradients(abs_pos):
    options = dict(img_size=64, embed_dim=32, depth=2, num_heads=2, window_size=3)
    options |= dict(abs_pos=abs_pos, rel_pos=not abs_pos)
    model = LoMaR(**options)
    usual = UsualLoMaR(**options, attention_backend="eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    usual.load_state_dict(model.state_dict())
    images, noise = torch.randn(3, 3, 64, 64), torch.rand(3, *model.noise_shape)
    losses = [m(images, noise=noise).loss for m in (model, usual)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, parameter), twin in zip(model.named_parameters(), usual.parameters(), strict=True):
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-4, atol=1e-6, msg=name)

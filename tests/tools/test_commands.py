"""The commands as users type them: one-line errors, exit codes, clean ends on signals."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.common import (
    ROOT,
    TINY_DETECTOR,
    TINY_PRETRAIN,
    data_settings,
    edit_json,
    read_metrics,
    tool_environment,
)

pytestmark = pytest.mark.run

DETECT = ["tools/train_net.py", "--config-file", "configs/custom/mask_rcnn_lomar_vit_tiny.py"]
PRETRAIN = ["tools/pretrain.py", "--config-file", "configs/pretrain/lomar_vit_tiny.py"]


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        cwd=ROOT,
        env=tool_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for_metrics(process, output):
    metrics = output / "metrics.json"
    deadline = time.monotonic() + 100
    while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.2)


def assert_one_clear_error(arguments, *words):
    code, out, err = finish(start(arguments))
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1, err
    assert "Traceback" not in out + err
    for word in words:
        assert word in lines[0]


def test_pretraining_without_images(tmp_path):
    output = f"train.output_dir={tmp_path / 'out'}"
    gone = tmp_path / "gone"
    assert_one_clear_error([*PRETRAIN, output, f"data.path={gone}"], str(gone), "data.path")
    assert_one_clear_error([*PRETRAIN, output], "data.path=FOLDER")


def test_annotations_that_name_a_missing_image(drawn_set, tmp_path):
    annotations, images = drawn_set
    edit_json(annotations, lambda data: data["images"][1].update(file_name="lost.png"))
    settings = [*data_settings(annotations, images), f"train.output_dir={tmp_path / 'out'}"]
    assert_one_clear_error([*DETECT, *settings], str(annotations), "lost.png", "data.*.images")


def test_a_file_that_is_no_checkpoint(drawn_set, tmp_path):
    (tmp_path / "notes.pth").write_text("no weights")
    settings = [*data_settings(*drawn_set), f"train.output_dir={tmp_path / 'out'}"]
    weights = f"train.init_checkpoint={tmp_path / 'notes.pth'}"
    assert_one_clear_error([*DETECT, *settings, weights, "train.device=cpu"], "notes.pth")


def test_two_processes_train_stop_and_report(drawn_set, tmp_path):
    """Over gloo: a user error is printed once; a signal to the parent saves and ends all.

    The processes also share what they know of unreadable images.
    """
    for name in ("001.png", "002.png"):
        (drawn_set[1] / name).write_bytes(b"not an image")
    gone = tmp_path / "gone"
    two = [*PRETRAIN, "--num-gpus", "2", *TINY_PRETRAIN]
    assert_one_clear_error([*two, f"data.path={gone}"], str(gone))
    output = tmp_path / "out"
    settings = [f"data.path={drawn_set[1]}", f"train.output_dir={output}", "train.epochs=100000"]
    process = start([*two, *settings])
    wait_for_metrics(process, output)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143 and "Traceback" not in err
    assert (output / (output / "last_checkpoint").read_text()).is_file()
    bad = (output / "bad_images.txt").read_text().splitlines()
    assert sorted(line.partition("\t")[0][-7:] for line in bad) == ["001.png", "002.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_turns_out_broken(drawn_set, tmp_path, workers):
    (drawn_set[1] / "002.png").write_bytes(b"not an image")
    output = f"train.output_dir={tmp_path / 'out'}"
    settings = [*TINY_DETECTOR, *data_settings(*drawn_set), output]
    settings.append(f"dataloader.train.num_workers={workers}")
    assert_one_clear_error([*DETECT, *settings], "002.png", "repair")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes(drawn_set, tmp_path, number):
    output = tmp_path / "out"
    settings = [
        *TINY_PRETRAIN,
        f"data.path={drawn_set[1]}",
        f"train.output_dir={output}",
        "train.epochs=100000",
        "train.checkpoint_epochs=100000",
        "data.num_workers=1",
    ]
    process = start([*PRETRAIN, *settings])
    wait_for_metrics(process, output)
    os.killpg(process.pid, number)  # as a terminal and many schedulers do: workers included
    code, _, err = finish(process)
    assert code == 128 + number and "Traceback" not in err
    done = int((output / "last_checkpoint").read_text()[6:13])
    short = [s for s in settings if "train.epochs" not in s] + [f"train.epochs={done + 4}"]
    code, out, err = finish(start([*PRETRAIN, "--resume", *short]))
    assert code == 0, err
    assert [line["iteration"] for line in read_metrics(output)] == list(range(done + 4))


def test_shards_are_made_and_not_overwritten(drawn_set, tmp_path):
    arguments = ["tools/make_shards.py", "--input", drawn_set[1], "--output", tmp_path / "shards"]
    code, out, err = finish(start([*arguments, "--shortest-side", "32", "--num-workers", "1"]))
    assert code == 0 and (tmp_path / "shards" / "shards-000000.tar").is_file(), out + err
    assert_one_clear_error(arguments, "shards-000000.tar", "--force")

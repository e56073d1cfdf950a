"""The whole way on real images: unlabelled blood smears, pretraining, detectors, COCO AP.

A backbone is pretrained on all 292 training images without their labels. The same detector is
then trained on 29 labelled images, from random weights and from that backbone, side by side in one
thread each. Both are evaluated on 72 other images. What is written:

    OUTPUT/summary.json         box AP of both detectors, losses, times
    OUTPUT/comparison.png       ground truth and detections side by side
    OUTPUT/reconstruction.png   what pretraining has learned
    OUTPUT/loss.png             its loss, beside that of a constant
    OUTPUT/*/                   the runs, with their logs

    python projects/blood_cells/run_demo.py --output output/demo [--seed 0]
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from lomar_det.data import split
from lomar_det.detection.draw import detections_sheet
from lomar_det.engine.writers import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Path("projects/blood_cells")
TRAIN, VAL = (PROJECT / f"data/annotations_{name}.json" for name in ("train", "val"))

# name of a detector -> how the table calls it
TITLES = {"random": "random weights", "pretrained": "pretrained"}
_PROGRESS = re.compile(r"eta: (\S+) +iter: (\d+) .*?total_loss: (\S+)")


class ToolRun:
    """A command of `tools/` in a process of its own, which reports its steps on this terminal.

    Args:
        name: What the reports call it.
        tool, config: File names without suffix.
        output: Its folder; the log lies beside it.
        settings: Overrides.
        threads: Of the process, on a CPU.
    """

    def __init__(
        self, name: str, tool: str, config: str, output: Path, *settings: str, threads: int = 1
    ):
        self.name, self.output = name, output
        self._log = output.with_suffix(".log")
        shutil.rmtree(output, ignore_errors=True)  # an earlier demo's metrics would mix with ours
        command = [sys.executable, "-W", "ignore", f"tools/{tool}.py", "--config-file"]
        command += [
            str(PROJECT / "configs" / f"{config}.py"),
            f"train.output_dir={output}",
            *settings,
        ]
        print("$ " + shlex.join(["python", *command[3:]]), flush=True)
        self._start = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._report, daemon=True)
        self._reader.start()

    def _report(self) -> None:
        with self._log.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                if match := _PROGRESS.search(line):
                    left, step, loss = match.groups()
                    text = f"step {int(step) + 1:>4}, loss {loss:>6}, {left} left"
                    print(f"  {self.name:<16} {text}", flush=True)
        self._seconds = time.perf_counter() - self._start

    def wait(self) -> float:
        """Returns the seconds that it took; ends the demo if it failed."""
        status = self._process.wait()
        self._reader.join()
        if status:
            last = "".join(self._log.read_text().splitlines(keepends=True)[-5:])
            sys.exit(f"{self.name} ended with code {status}; all of it: {self._log}\n{last}")
        print(f"  {self.name:<16} done in {self._seconds:.0f} s", flush=True)
        return round(self._seconds, 1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Demo:
    """The runs of the demo, everything under one folder."""

    def __init__(self, output: Path, seed: int):
        self.output, self.seed = output.resolve(), seed
        self.seconds: dict[str, float] = {}

    def pretrain(self) -> ToolRun:
        output, settings = self.output / "pretrain", [f"train.seed={self.seed}"]
        return ToolRun("pretraining", "pretrain", "pretrain", output, *settings, threads=2)

    def detect(self, name: str, annotations: Path, checkpoint: Path | str = "") -> ToolRun:
        settings = [f"train.seed={self.seed}", f"data.train.annotations={annotations}"]
        settings.append(f"train.init_checkpoint={checkpoint}")
        return ToolRun(TITLES[name], "train_net", "detect", self.output / name, *settings)

    def finish(self, *runs: ToolRun) -> None:
        try:
            for run in runs:
                self.seconds[run.output.name] = run.wait()
        finally:
            for run in runs:
                run.stop()


def read_boxes(output: Path) -> dict[str, float | None]:
    results = json.loads((output / "metrics_test.json").read_text())["bbox"]
    return {key: results[key] for key in ("AP", "AP50")}


def read_losses(output: Path) -> dict[str, float]:
    lines = read_metrics(output / "metrics.json")
    last = [line for line in lines if "loss_constant" in line][-1]
    return {"loss": last["total_loss"], "loss_constant": last["loss_constant"]}


def format_table(summary: dict) -> str:
    loss, seconds = summary["pretraining"], summary["seconds"]
    lines = [
        f"pretraining: loss {loss['loss']:.3f}, that of a constant {loss['loss_constant']:.3f}",
        "",
        f"{'72 images that no run has seen':<32}{'box AP':>8}{'box AP50':>10}{'time':>9}",
    ]
    for name, title in TITLES.items():
        ap, ap50 = (float("nan") if v is None else v for v in summary["box"][name].values())
        lines.append(f"{title:<32}{ap:>8.1f}{ap50:>10.1f}{seconds[name]:>7.0f} s")
    return "\n".join(lines)


def main(output: Path, seed: int) -> None:
    demo = Demo(output, seed)
    demo.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print("=== 1/3 29 of the 292 training images keep their labels", flush=True)
    labelled = demo.output / "labelled.json"
    parts = [str(labelled), str(demo.output / "unlabelled.json")]
    if split.main([str(ROOT / TRAIN), *parts, "--share", "0.1", "--seed", str(seed)]):
        sys.exit(1)
    print("=== 2/3 Pretraining on all 292, without labels", flush=True)
    demo.finish(demo.pretrain())
    print("=== 3/3 The same detector twice, on the 29 labelled images", flush=True)
    backbone = demo.output / "pretrain" / "backbone_final.pth"
    demo.finish(demo.detect("random", labelled), demo.detect("pretrained", labelled, backbone))
    summary = {
        "box": {name: read_boxes(demo.output / name) for name in TITLES},
        "pretraining": read_losses(demo.output / "pretrain"),
        "seed": seed,
        "seconds": demo.seconds | {"all": round(time.perf_counter() - start, 1)},
    }
    (demo.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name in ("reconstruction.png", "loss.png"):
        shutil.copy(demo.output / "pretrain" / name, demo.output)
    found = "inference/coco_instances_results.json"
    results = {TITLES[name]: demo.output / name / found for name in ("random", "pretrained")}
    images = ROOT / PROJECT / "data/images"
    detections_sheet(ROOT / VAL, images, results, demo.output / "comparison.png")
    print("\n" + format_table(summary))
    print(f"\nFigures: {demo.output / 'summary.json'}")
    for name in ("comparison.png", "reconstruction.png", "loss.png"):
        print(f"Image: {demo.output / name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and labels kept")
    args = parser.parse_args()
    try:
        main(args.output, args.seed)
    except KeyboardInterrupt:
        sys.exit("interrupted")

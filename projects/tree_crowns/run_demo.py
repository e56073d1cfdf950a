"""The whole way on real images: unlabelled tiles, pretraining, detector, COCO AP.

Runs the same two tools as a user would, prints a table and writes ``summary.json`` and images:

    python projects/tree_crowns/run_demo.py --output output/demo
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from prepare_data import prepare  # in this folder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = "projects/tree_crowns/configs"


class Demo:
    """The stages of the demo, each timed, everything under one folder."""

    num_stages = 4

    def __init__(self, output: Path):
        self.output = output.resolve()
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, title: str, work):
        """Runs ``work()`` under a headline and notes its time."""
        print(f"\n=== {len(self.seconds) + 1}/{self.num_stages} {title}", flush=True)
        start = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"=== {title}: {self.seconds[name]:.0f} s", flush=True)
        return result

    def tool(self, name: str, config: str, output: Path, *settings: str) -> None:
        """Runs one of the tools from the root of the checkout, its log shown as it comes."""
        shutil.rmtree(output, ignore_errors=True)  # an earlier demo's metrics would mix with ours
        command = [sys.executable, "-W", "ignore", f"tools/{name}.py"]
        command += ["--config-file", f"{CONFIGS}/{config}.py", f"train.output_dir={output}"]
        command += settings
        print("$ " + shlex.join(["python", *command[3:]]), flush=True)
        status = subprocess.run(command, cwd=ROOT).returncode
        if status:
            sys.exit(f"tools/{name}.py ended with code {status}; its log: {output / 'log.txt'}")

    def pretrain(self, data: dict) -> Path:
        output = self.output / "pretrain"
        self.tool("pretrain", "pretrain", output, f"data.path={data['unlabelled']['image_root']}")
        return output

    def detect(self, data: dict, name: str, checkpoint: Path | None) -> Path:
        output = self.output / name
        settings = [f"train.init_checkpoint={checkpoint or ''}"]
        for split in ("train", "val"):
            settings.append(f"data.{split}.annotations={data[split]['annotations']}")
            settings.append(f"data.{split}.images={data[split]['image_root']}")
        self.tool("train_net", "detect", output, *settings)
        return output


def read_losses(output: Path) -> list[float]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [json.loads(line)["total_loss"] for line in lines if "total_loss" in line]


def read_boxes(output: Path) -> dict[str, float]:
    results = json.loads((output / "metrics_test.json").read_text())["bbox"]
    return {key: results[key] for key in ("AP", "AP50")}


def summarize(demo: Demo, pretrain: Path, pretrained: Path, scratch: Path) -> dict:
    """The figures of the run, as printed and as written to ``summary.json``."""
    import torch

    losses = read_losses(pretrain)
    return {
        "pretraining_loss": {"first": losses[0], "last": losses[-1]},
        "box": {"with_pretraining": read_boxes(pretrained), "without": read_boxes(scratch)},
        "seconds": demo.seconds | {"all": round(sum(demo.seconds.values()), 1)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def table(summary: dict) -> str:
    loss, box, seconds = (summary[key] for key in ("pretraining_loss", "box", "seconds"))
    lines = [
        f"pretraining loss        first {loss['first']:.3f}   last {loss['last']:.3f}",
        "",
        "held-out image        box AP   box AP50",
    ]
    for key, title in (("with_pretraining", "LoMaR pretraining"), ("without", "random weights")):
        ap, ap50 = (math.nan if box[key][m] is None else box[key][m] for m in ("AP", "AP50"))
        lines.append(f"{title:<22} {ap:8.1f} {ap50:10.1f}")
    lines += [
        "One run each, of a few minutes: expect another seed to move AP50 by some points.",
        "",
    ]
    lines += [f"{name:<22} {value:7.0f} s" for name, value in seconds.items()]
    return "\n".join(lines)


def main(output: Path) -> None:
    from lomar_det.detection.draw import detections_sheet

    demo = Demo(output)
    data = demo.stage(
        "data",
        "Data: aerial images of tree crowns",
        lambda: prepare(
            demo.output / "data",
            tile_size=256,
            overlap=64,
            unlabelled_tile_size=320,
            unlabelled_overlap=64,
        ),
    )
    pretrain = demo.stage(
        "pretrain", "Pretraining with LoMaR, without labels", lambda: demo.pretrain(data)
    )
    pretrained = demo.stage(
        "detector",
        "Detector from the pretrained backbone",
        lambda: demo.detect(data, "detector", pretrain / "backbone_final.pth"),
    )
    scratch = demo.stage(
        "detector_random",
        "The same detector from random weights",
        lambda: demo.detect(data, "detector_random", None),
    )
    summary = summarize(demo, pretrain, pretrained, scratch)
    (demo.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    images = [pretrain / "reconstruction.png", pretrain / "loss.png"]
    for image in images:
        shutil.copy(image, demo.output)
    detections_sheet(
        data["val"]["annotations"],
        data["val"]["image_root"],
        pretrained / "inference" / "coco_instances_results.json",
        demo.output / "detections.png",
        min_score=0.3,
    )
    print("\n" + table(summary))
    print(f"\nFigures: {demo.output / 'summary.json'}")
    for name in ("reconstruction.png", "loss.png", "detections.png"):
        print(f"Image: {demo.output / name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    try:
        main(parser.parse_args().output)
    except KeyboardInterrupt:
        sys.exit("interrupted")

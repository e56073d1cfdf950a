"""Checks a COCO-format data set before anything is trained on it, and describes it.

python -m lomar_det.data.check ANNOTATIONS IMAGES [--quick] [--train-only] [--strict]
    [--json OUT]

Errors: training or evaluation would stop, or be wrong throughout. Warnings: they run, but some
objects are lost or doubtful. The exit code is 1 if there are errors (with --strict: or warnings),
0 otherwise, 2 if a file or folder that was given does not exist. Training runs the same checks,
except that it reads the images' headers only, and stops at errors.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import median

from tabulate import tabulate

from .checks.findings import ERROR, WARNING, Findings
from .coco import CocoSummary, check_coco, summarize_coco


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    args = parse_arguments(arguments)
    data, findings = check_coco(
        args.annotations,
        args.images,
        for_evaluation=not args.train_only,
        decode=not args.quick,
        progress=True,
    )
    summary = None if data is None else summarize_coco(data, args.annotations, args.images)
    statistics = {} if data is None else describe(data)
    if summary is not None:
        print(format_summary(summary, statistics))
    print(format_findings(findings))
    failed = bool(findings.of_level(ERROR) or args.strict and findings.of_level(WARNING))
    if args.json:
        report = {"ok": not failed, "findings": findings.to_json()}
        if summary is not None:
            report["summary"] = asdict(summary) | statistics
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=2, default=str) + "\n")
        except OSError as error:
            print(f"error: --json {args.json} cannot be written: {error}", file=sys.stderr)
            return 2
    return int(failed)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lomar_det.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("annotations", type=Path, help="COCO-format JSON")
    parser.add_argument("images", type=Path, help="folder of its images")
    parser.add_argument("--quick", action="store_true", help="read only the images' headers")
    parser.add_argument(
        "--train-only", action="store_true", help="do not ask for what only evaluation needs"
    )
    parser.add_argument("--strict", action="store_true", help="let warnings count as errors")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the report there")
    args = parser.parse_args(arguments)
    args.annotations, args.images = args.annotations.expanduser(), args.images.expanduser()
    if not args.annotations.is_file():
        parser.error(f"the annotation file {args.annotations} does not exist")
    if not args.images.is_dir():
        parser.error(f"the image folder {args.images} does not exist")
    return args


def describe(data: dict) -> dict:
    """Sizes of images and objects, of a COCO file whose entries are complete."""
    sizes = Counter((image["width"], image["height"]) for image in data["images"])
    objects = [a for a in data["annotations"] if not a.get("iscrowd", 0)]
    areas = [a["area"] for a in objects if isinstance(a.get("area"), int | float)]
    small, medium = sum(a < 32**2 for a in areas), sum(32**2 <= a < 96**2 for a in areas)
    return {
        "picture_sizes": [[*size, count] for size, count in sizes.most_common()],
        "median_picture_size": [median(s[i] for s in sizes.elements()) for i in (0, 1)],
        "objects_small_medium_large": [small, medium, len(areas) - small - medium],
        "num_polygon_masks": sum(isinstance(a.get("segmentation") or 0, list) for a in objects),
        "num_rle_masks": sum(isinstance(a.get("segmentation") or 0, dict) for a in objects),
    }


def format_summary(summary: CocoSummary, statistics: dict) -> str:
    sizes = statistics["picture_sizes"]
    common = ", ".join(f"{w} x {h} ({count})" for w, h, count in sizes[:3])
    if len(sizes) > 3:
        common += ", ..."
    median_size = "{:g} x {:g}".format(*statistics["median_picture_size"])
    small, medium, large = statistics["objects_small_medium_large"]
    polygons, rles = statistics["num_polygon_masks"], statistics["num_rle_masks"]
    mean = summary.num_instances / max(1, summary.num_annotated_images)
    rows = [
        ("images", f"{summary.num_images}, of which {summary.num_annotated_images} with objects"),
        ("sizes", f"median {median_size}; {len(sizes)} different: {common}"),
        ("objects", f"{summary.num_instances}, and {summary.num_crowds} crowd regions"),
        ("per image", f"{mean:.1f} where there are any, at most {summary.max_instances}"),
        ("area", f"{small} below 32 x 32, {large} from 96 x 96, {medium} between"),
        ("masks", f"{polygons} polygons, {rles} run-length" if polygons + rles else "none"),
    ]
    classes = zip(summary.category_ids, summary.class_names, summary.class_counts, strict=True)
    table = tabulate(classes, headers=["id", "class", "objects"], disable_numparse=[1])
    return f"{summary.annotations}\n\n{tabulate(rows, tablefmt='plain')}\n\n{table}\n"


def format_findings(findings: Findings) -> str:
    lines = []
    for name, kind in findings:
        count, examples = findings.counts[name], findings.examples[name]
        lines += [f"{kind.level}: {kind.title}: {count} [{name}]", f"  {kind.meaning}"]
        lines += [f"    {example}" for example in examples]
        if count > len(examples):
            lines.append(f"    ... and {count - len(examples)} more")
    errors, warnings = (len(findings.of_level(level)) for level in (ERROR, WARNING))
    outcome = "Training would not start." if errors else "Training can start."
    lines.append(f"Kinds of findings: {errors} errors, {warnings} warnings. {outcome}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

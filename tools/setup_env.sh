#!/usr/bin/env bash
# Creates .venv at the root of the checkout and installs everything into it. Called by `make`;
# can be run by hand. May be interrupted and run again at any time: whatever is complete is kept,
# whatever is not is installed anew, and the stamp is written last.
#
#   PYTHON=python3.12 tools/setup_env.sh     another interpreter than python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.setup-complete
PY=$VENV/bin/python
VERSION_CODE='import sys; print("%d.%d" % sys.version_info[:2])'

export PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_USER=0 # a user-wide `user = true` cannot work inside a virtual environment

say() { echo "[setup] $*"; }
die() {
    echo "[setup] ERROR: $*" >&2
    exit 1
}

# pip's progress bars vanish when its output is not a terminal, and torch alone takes minutes.
heartbeat_pid=
stop_heartbeat() {
    [[ -z $heartbeat_pid ]] || kill "$heartbeat_pid" 2>/dev/null || true
    heartbeat_pid=
}
trap stop_heartbeat EXIT

# Runs pip quietly, with a line every 20 seconds. Ends by itself should this script be killed.
run_pip() {
    local started=$SECONDS
    (
        while sleep 20 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
            say "  still working, $((SECONDS - started)) s"
        done
    ) &
    heartbeat_pid=$!
    "$PY" -m pip --quiet "$@" || die "pip failed (see above). Run the same command again to go on" \
        "from here; behind a proxy or with a package mirror, configure pip for it first."
    stop_heartbeat
}

check_interpreter() {
    local python=$1 version
    version=$("$python" -c "$VERSION_CODE" 2>/dev/null) ||
        die "no usable Python called '$python'. Name one: make PYTHON=python3.12 setup"
    [[ ${version%%.*} -gt 3 || (${version%%.*} -eq 3 && ${version#*.} -ge 11) ]] ||
        die "'$python' is Python $version, but 3.11 or newer is needed." \
            "Name one: make PYTHON=python3.12 setup"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "'$python' (Python $version) lacks the venv module. On Debian and Ubuntu it is in the" \
            "package python$version-venv; or name another Python: make PYTHON=python3.12 setup"
}

# Keeps a working .venv, unless PYTHON was given and is another version than the one in there.
make_venv() {
    local have='' want=''
    # A .venv without pip was cut off while it was made, or comes from a tool that adds none.
    if "$PY" -m pip --version >/dev/null 2>&1 || "$PY" -m ensurepip >/dev/null 2>&1; then
        have=$("$PY" -c "$VERSION_CODE")
        if [[ -n ${PYTHON:-} ]]; then
            check_interpreter "$PYTHON"
            want=$("$PYTHON" -c "$VERSION_CODE")
        else
            check_interpreter "$PY"
            want=$have
        fi
        if [[ $have == "$want" ]]; then
            say "1/5 using the $VENV that is there (Python $have)"
            return
        fi
    fi
    check_interpreter "${PYTHON:-python3}"
    if [[ -n $have ]]; then
        say "1/5 replacing $VENV (Python $have) by one of Python $want"
    else
        say "1/5 creating $VENV with $("${PYTHON:-python3}" --version)"
    fi
    "${PYTHON:-python3}" -m venv --clear "$VENV"
}

# A pip that was killed leaves half-copied packages which the next pip takes for installed. Their
# metadata is removed here, so that they are installed again.
forget_broken_packages() {
    rm -rf "$SITE"/~*
    "$PY" -I - "$SITE" <<'PYTHON_CODE'
import csv
import shutil
import sys
from pathlib import Path

site = Path(sys.argv[1])


def is_whole(info: Path) -> bool:
    """Compares with RECORD, which pip writes last. Byte code comes and goes."""
    if not (info / "RECORD").is_file():
        return False
    with open(info / "RECORD", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].endswith(".pyc")]
    files = ((site / name, size) for name, _, size in rows)
    return all(path.exists() and size in ("", str(path.stat().st_size)) for path, size in files)


for info in sorted(site.glob("*.dist-info")):
    own = info.name.startswith("detectron2-")  # the user's build, patched perhaps: never touched
    if not own and not is_whole(info):
        print(f"[setup]   incomplete, will be installed again: {info.stem}")
        shutil.rmtree(info)
# detectron2 is judged by an import below, which would not notice a half-copied folder.
if not any(site.glob("*detectron2*-info")) and (site / "detectron2").is_dir():
    shutil.rmtree(site / "detectron2")
PYTHON_CODE
}

has_vitdet() {
    "$PY" -I -W ignore -c 'from detectron2.modeling import ViT, SimpleFeaturePyramid'
}

# The packaged detectron2 holds a binary that cannot be loaded here, and a top-level `tools` that
# would shadow ours. RECORD is kept in step, so that the package still counts as whole and can be
# uninstalled.
trim_detectron2() {
    "$PY" -I - "$SITE" <<'PYTHON_CODE'
import re
import shutil
import sys
from pathlib import Path

site = Path(sys.argv[1])
info = next(site.glob("sal_detectron2-*.dist-info"), None)
if info is None:
    sys.exit()  # somebody's own detectron2: left as it is
record = info / "RECORD"
lines = record.read_text().splitlines(keepends=True)
wanted = [line for line in lines if re.match(r"(detectron2/(?!_C\.)|sal_detectron2-)", line)]
for line in set(lines) - set(wanted):
    name = line.split(",")[0]
    if name.startswith("detectron2/"):
        (site / name).unlink(missing_ok=True)
    elif not name.startswith((".", "/")):
        shutil.rmtree(site / name.split("/")[0], ignore_errors=True)
record.write_text("".join(wanted))
PYTHON_CODE
}

install_detectron2() {
    local reason
    if reason=$(has_vitdet 2>&1); then
        trim_detectron2
        say "4/5 detectron2: keeping the one in $VENV, it has ViTDet"
        return
    fi
    if "$PY" -I -c 'import importlib.metadata as m; m.version("detectron2")' 2>/dev/null; then
        die "the detectron2 in $VENV cannot import ViTDet:" "${reason##*$'\n'}." \
            "Repair it, or remove it: $PY -m pip uninstall detectron2"
    fi
    say "4/5 detectron2: installing the packaged one, without its compiled part"
    # Tagged for Python 3.10 only, hence --python-version, which pip allows with --target alone.
    run_pip install --no-deps --only-binary=:all: --python-version 3.10 --upgrade \
        --target "$SITE" --require-hashes -r requirements-detectron2.txt
    trim_detectron2
    has_vitdet || die "detectron2 was installed but cannot import ViTDet (see above)."
}

make_venv
rm -f "$STAMP"
SITE=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
forget_broken_packages

say "2/5 installing PyTorch and what else requirements.txt names (about 6 GB with CUDA;" \
    "several minutes the first time)"
run_pip install -r requirements.txt
say "3/5 installing the tools for tests and style (requirements-dev.txt)"
run_pip install -r requirements-dev.txt
install_detectron2
say "5/5 installing lomar_det and lomar_pretrain from this checkout"
run_pip install --no-deps --no-build-isolation -e .
"$PY" -I -c 'import importlib.util as u, sys
sys.exit(not all(u.find_spec(name) for name in ("lomar_det", "lomar_pretrain")))' ||
    die "lomar_det or lomar_pretrain cannot be found after their installation."

pwd -P >"$STAMP"
say "done: $("$PY" --version), torch $("$PY" -I -c 'import torch; print(torch.__version__)')"

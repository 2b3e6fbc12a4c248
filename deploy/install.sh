#!/usr/bin/env bash
# Builds .venv with everything that the demo and the tests need, from pinned versions (constraints.txt).
#
# PyTorch: with an NVIDIA GPU the usual build; without one the CPU build, never several GB of CUDA by accident. Where
# the CPU build is not on your package index, give PyTorch's own: TORCH_INDEX=<the CPU index shown on pytorch.org>.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv
version=$(sed -n 's/^torch==//p' constraints.txt)

"$python" - <<'PY' || { echo "install: wanted Python 3.11 or newer as \$PYTHON (now: $python)" >&2; exit 2; }
import sys
sys.exit(sys.version_info < (3, 11))
PY

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    index=${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
    if [ "$(uname)" != Linux ] || command -v nvidia-smi >/dev/null; then
        echo "install: torch $version (the build for this machine's GPU or system)"
        pip install "torch==$version"
    else
        echo "install: torch $version, CPU build"
        # shellcheck disable=SC2086
        pip install $index "torch==$version+cpu" || {
            cat >&2 <<EOF
install: the CPU build of torch $version is not on your package index, and the other build is several GB of CUDA.
  CPU (recommended here):  make ... TORCH_INDEX=<the "CPU" pip index shown under "Get started" on pytorch.org>
  CUDA, on purpose:        $venv/bin/python -m pip install torch==$version   and then make ... again
EOF
            exit 3
        }
    fi
fi

echo "install: commonweal and its pinned packages"
pip install -c constraints.txt -e '.[node,data,tensorboard,flower,coordinator,object-store]' -r <("$venv/bin/python" - <<'PY'
import tomllib
groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]
print("\n".join(groups["dev"] + groups["docs"]))
PY
)
touch "$venv/.installed"

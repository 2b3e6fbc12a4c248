#!/usr/bin/env bash
# The one gate, the same here and in CI. Everything but the base model's download runs without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
step() { printf '\n== %s\n' "$*"; }

step "format and lint"
"$bin/ruff" format --check .
"$bin/ruff" check .

step "types"
"$bin/mypy"

step "arrows"
"$bin/lint-imports"

step "generated code is what the proto makes"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$bin/python" -m grpc_tools.protoc -I protocols --python_out="$fresh" --pyi_out="$fresh" --grpc_python_out="$fresh" \
    protocols/commonweal_protocols/wire/commonweal.proto
for f in commonweal_pb2.py commonweal_pb2.pyi commonweal_pb2_grpc.py; do
    diff -u "protocols/commonweal_protocols/wire/$f" "$fresh/commonweal_protocols/wire/$f"
done

step "docs: a site without a dead link, which loads nothing from another host"
NO_MKDOCS_2_WARNING=1 "$bin/mkdocs" build --strict --config-file docs/mkdocs.yml --site-dir "$fresh/site" 2>&1 | tee "$fresh/site.log"
# Of a link to a file that is not on the site mkdocs tells, and lets it pass.
if grep "excluded from the built site" "$fresh/site.log"; then exit 1; fi
if grep -rEo '<(script|link|img|iframe)[^>]+(src|href)="?(https?:)?//[^"> ]*' "$fresh/site"; then exit 1; fi

step "an auditor's install: no numpy, no torch, no gRPC"
"$bin/python" -m venv "$fresh/auditor"
"$fresh/auditor/bin/python" -m pip --disable-pip-version-check --quiet install -c constraints.txt .
"$fresh/auditor/bin/python" - <<'PY'
import importlib.util
import sys

found = [m for m in ("numpy", "torch", "grpc", "flwr", "safetensors") if importlib.util.find_spec(m)]
sys.exit(f"an auditor's install holds {found}" if found else 0)
PY
"$bin/python" -m tests.kit.make_records "$fresh/records"
"$fresh/auditor/bin/commonweal" audit run "$fresh/records/public" --no-memory --no-recompute
code=0
"$fresh/auditor/bin/commonweal" audit run "$fresh/records/public" --no-memory || code=$?
[ "$code" = 3 ] || { echo "wanted exit code 3 for a missing extra, got $code" >&2; exit 1; }

step "a plain install of the wheel: the newest of everything that the metadata allows"
"$bin/python" -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir "$fresh/wheel" .
"$bin/python" -m venv "$fresh/plain"
"$fresh/plain/bin/python" -m pip --disable-pip-version-check --quiet install "$fresh"/wheel/commonweal-*.whl
plain() {  # WANTED-CODES ARGUMENT...; what it prints lies in $fresh/printed
    local wanted=$1 code=0
    shift
    (cd "$fresh" && plain/bin/commonweal "$@") >"$fresh/printed" 2>&1 || code=$?
    case " $wanted " in
    *" $code "*) ;;
    *) cat "$fresh/printed"; echo "commonweal $*: wanted exit code $wanted, got $code" >&2; exit 1 ;;
    esac
    [ "$code" != 3 ] || grep -q "pip install 'commonweal\[" "$fresh/printed" ||
        { cat "$fresh/printed"; echo "commonweal $*: wanted the pip command for what is missing" >&2; exit 1; }
}
plain 0 --help
plain 0 --version
for group in audit witness; do plain 0 "$group" --help; done
# The help of some groups needs their extra; the others' needs none.
for group in adapter charter coordinator motion node vote; do plain "0 3" "$group" --help; done
plain 2 nonsense
plain 0 audit run "$fresh/records/public" --no-memory --no-recompute

step "base model (the one download)"
"$bin/commonweal" node fetch-base --compact deploy/demo/compact.toml --cache .demo/cache

step "tests"
export COMMONWEAL_BASE_CACHE=$PWD/.demo/cache HF_HUB_OFFLINE=1
# Most of the time a test waits: two workers for those that start whole federations run beside two for all others. Each
# worker has a loopback of its own, so that no port is taken twice.
code=0
"$bin/python" -m pytest -n 2 --dist loadfile -m slow >"$fresh/slow.log" 2>&1 &
"$bin/python" -m pytest -n 2 --dist worksteal -m "not slow" || code=$?
wait $! || code=$?
cat "$fresh/slow.log"
exit "$code"

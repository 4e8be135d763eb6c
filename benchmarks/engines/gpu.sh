#!/usr/bin/env bash
# The JAX engine on one card, in under eight minutes: a table on the screen and in OUT/gpu.md, and a
# profile of one step in OUT/profile (open it with xprof or Perfetto). Nothing is downloaded but what
# is missing of keras, msgpack, pydantic and platformdirs; TensorFlow is not needed.
#
#   benchmarks/engines/gpu.sh [OUT] [MORE OF gpu.py'S OPTIONS…]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-gpu-out}
shift || true
python=${PYTHON:-python3}
mkdir -p "$out"
# The repository's folders are the package fluffle: nothing of it needs to be installed.
export PYTHONPATH=$PWD FLUFFLE_ENGINE=jax XLA_PYTHON_CLIENT_PREALLOCATE=false
missing=$("$python" - <<'PYTHON'
from importlib.util import find_spec
print(*(name for name in ("keras", "msgpack", "pydantic", "numpy") if find_spec(name) is None))
PYTHON
)
# shellcheck disable=SC2086 # names, one by one
[ -z "$missing" ] || "$python" -m pip install --quiet $missing
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null || echo "no NVIDIA card"
timeout "${LIMIT_S:-450}" "$python" benchmarks/engines/gpu.py --profile "$out/profile" "$@" | tee "$out/gpu.md"

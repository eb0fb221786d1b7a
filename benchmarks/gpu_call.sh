# What both calls on a GPU share (gpu_first_call.sh, gpu_second_call.sh): sourced with the kit's file as $1. LIMIT is the
# time of the whole call in seconds; results go into the folder $OUT, a file for each part.
if [ $# -lt 1 ] || [ ! -f "$1" ] || [ ! -d "${OUT:-}" ]; then
  echo "usage: OUT=FOLDER bash $0 KIT    KIT is what make gpu-kit wrote, headrace-gpu-kit.tar.gz; OUT takes the results" >&2
  exit 2
fi
KIT=$(mktemp -d)
tar -C "$KIT" -xzf "$1" || exit 2
shift
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SITE=$(mktemp -d)
# With one queue for each stream a stream that waits for the CPU does not hold up the copies of another one.
export PYTHONUNBUFFERED=1 PYTHONPATH=$SITE CUDA_DEVICE_MAX_CONNECTIONS=32
PYTHON=${PYTHON:-python3}

say() { echo "== $* ($SECONDS s)"; }

# limited SECONDS COMMAND...: no longer than that, nor than what is left of the call
limited() {
  local seconds=$1 left=$((LIMIT - SECONDS))
  shift
  [ "$left" -lt "$seconds" ] && seconds=$left
  [ "$seconds" -lt 10 ] && { say "no time for $*"; return 1; }
  timeout -k 5 "$seconds" "$@"
}

# part NAME SECONDS OPTIONS...: one part of the suite into $OUT/NAME.json, which stops itself before it is stopped
part() {
  local name=$1 seconds=$2
  shift 2
  say "$name"
  limited "$seconds" "$PYTHON" "$ROOT/benchmarks/gpu_suite.py" --seconds $((seconds - 10)) --json "$OUT/$name.json" "$@"
  local status=$?
  [ $status -ne 0 ] && say "$name ended with status $status"
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,pcie.link.gen.max,pcie.link.width.max,memory.total --format=csv,noheader
  lscpu | grep -E "Model name|^CPU\(s\)|Thread|L3|amx" | cut -c1-90
  grep -E "^Mem(Total|Available)" /proc/meminfo
  "$PYTHON" -m pip list 2>/dev/null | grep -iE "^(torch|triton|numpy|nanobind|scikit.build.core) "
}

# The wheel, or where it does not fit what it is made of; and the kernels that were compiled before.
prepare() {
  say environment
  environment 2>&1 | tee "$OUT/environment.txt"
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$SITE" "$KIT"/headrace-*.whl || {
    say "the wheel does not fit: building"
    limited 120 "$PYTHON" -m pip install -q --no-build-isolation --no-deps --target "$SITE" "$ROOT"
  }
  local cache=${TRITON_CACHE_DIR:-$HOME/.triton/cache}
  mkdir -p "$cache" && cp -rn "$KIT/cache/." "$cache" || say "no kernels that were compiled before"
}

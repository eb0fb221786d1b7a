#!/bin/bash
# The second call on a GPU, within 5 minutes. After a first one that went well: every case against its twin, placements
# and graphs against each other, a model in bf16, and a look into two kernels where time is left. After one in which something broke: name what broke, and
# it alone is run once more, each launch waited for, so that an error is raised where it happens.
#
#     OUT=FOLDER bash benchmarks/gpu_second_call.sh build/headrace-gpu-kit.tar.gz
#     OUT=FOLDER bash benchmarks/gpu_second_call.sh build/headrace-gpu-kit.tar.gz models:cpu-moe micro:across
LIMIT=290
source "$(dirname "${BASH_SOURCE[0]}")/gpu_call.sh"

# counters NAME KERNELS ROW: what Nsight Compute says of the first launch of each of the kernels
counters() {
  command -v ncu >/dev/null || { say "no ncu here: no counters of $1"; return; }
  say "counters of $1"
  limited 35 ncu --clock-control none --target-processes all --kernel-name "regex:^($2)$" --launch-count 2 --csv \
    "$PYTHON" "$ROOT/benchmarks/gpu_suite.py" --only "table:$3" --rounds 1 --json "$OUT/counted-$1.json" >"$OUT/ncu-$1.csv" 2>&1
}

prepare
if [ $# -gt 0 ]; then
  export CUDA_LAUNCH_BLOCKING=1
  for what in "$@"; do
    part "again-$(tr -c 'a-zA-Z0-9_\n-' - <<<"$what")" 120 --only "$what"
  done
else
  part checks 105 --only checks
  part same 85 --only same
  part bf16 70 --only "variants:gpu bf16"
  counters experts "_gate_up|_down" "experts q4_0 128x2048x768, 1 tokens"
  counters attention "_decode|_merge" "attention 32/4 heads of 128, 1 new of 4096"
fi
say end

#!/bin/bash
# The first call on a GPU, within 8 minutes: does everything run, and what is far from what was expected?
#
#     OUT=FOLDER bash benchmarks/gpu_first_call.sh build/headrace-gpu-kit.tar.gz
#
# From small to large: questions, the hand-off, the machine's rates (so that models are predicted), a model by graphs and by
# hand, which kernels its steps take, then the kernel table.
# Every part has its own limit of time and its own file in $OUT; what fails stops no other.
LIMIT=470
source "$(dirname "${BASH_SOURCE[0]}")/gpu_call.sh"
prepare
part micro 45 --only micro
part handoff 35 --only handoff
part measure 50 --quick --only measure
part models 135 --only models
part profile 75 --only profile
part table 105 --only table --rounds 2
say end

#!/bin/bash
# The first call on a GPU, within 8 minutes: does everything run, and what is far from what was expected?
#
#     OUT=FOLDER bash benchmarks/gpu_first_call.sh build/headrace-gpu-kit.tar.gz
#
# From small to large: questions, the hand-off, a model by graphs and by hand, the same in bf16, then the kernel table.
# Every part has its own limit of time and its own file in $OUT; what fails stops no other.
LIMIT=470
source "$(dirname "${BASH_SOURCE[0]}")/gpu_call.sh"
prepare
part micro 60 --only micro
part handoff 60 --only handoff
part models 125 --only models
part bf16 75 --only "variants:gpu bf16"
part table 110 --only table --rounds 2
say end

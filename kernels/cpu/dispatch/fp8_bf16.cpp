// fp8 by products of bf16, for CPUs with AVX-512 that have them: isa.cpp puts it into the table of isa_avx512.cpp.
#include "isa/ints_avx512.h"

#include "cores/dot.h"
#include "formats/fp8.h"

namespace headrace {
const FormatKernels fp8_by_bf16 = {Fp8Bf16::row_bytes, Fp8Bf16::acts_bytes, Dot<Fp8Bf16>::run, Fp8Bf16::prepare,
                                   Fp8Format::unpack,  nullptr,             nullptr};
}

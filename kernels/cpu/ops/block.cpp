// A layer before its experts in one turn of the team; `compose` in kernels/decoder_layer.py says what it stands for.
//
// What passes between its ops lies in the arena, so nothing is allocated from the second call on.
#include <cstring>

#include "ops/mixers/mixers.h"

namespace headrace {
namespace {

// Rows `rows` of x [., n] one after the other.
void gather(const float* x, int n, const int64_t* rows, int count, float* out) {
  for (int i = 0; i < count; i++) std::memcpy(out + size_t(i) * n, x + size_t(rows[i]) * n, size_t(n) * sizeof(float));
}

// out = the norm of x, to which y is added before, if there is one.
void add_and_norm(const Block& block, float* x, const float* y, const float* weight, const float* bias, float* out,
                  int tokens, Turn& turn) {
  const int d = block.hidden;
  const float eps = block.eps, scale = block.residual_scale;
  if (bias)
    y ? add_layernorm(x, y, weight, bias, out, tokens, d, eps, scale, turn)
      : layernorm(x, weight, bias, out, tokens, d, eps, turn);
  else
    y ? add_rmsnorm(x, y, weight, out, tokens, d, eps, scale, turn) : rmsnorm(x, weight, out, tokens, d, eps, turn);
}

// What goes into `o` of the tokens that go on; nothing where there is no mixer.
float* gathered(const float* a, int width, const Wanted& wanted, Arena& arena) {
  if (!a) return nullptr;
  float* few = arena.take<float>(size_t(wanted.count) * width);
  gather(a, width, wanted.rows, wanted.count, few);
  return few;
}

// A layer that looks at no other token.
float* mix(const NoMixer&, const Normed&, Turn&, Stopwatch&) { return nullptr; }

}  // namespace

void attention_block(const Block& block, const Places& places, float* x, const float* update, int tokens,
                     const Wanted& wanted, float* h, int32_t* ids, float* weights, const Context& context) {
  Stopwatch watch;
  Turn turn(context);
  Arena& arena = turn.team.arena;
  const int hidden = block.hidden;
  const bool goes_on = !wanted.rows || wanted.count > 0, mixes = !std::holds_alternative<NoMixer>(block.mixer);
  if (!mixes && !goes_on) return;
  float* normed = mixes || wanted.rows ? arena.take<float>(size_t(tokens) * hidden) : h;
  add_and_norm(block, x, update, block.pre_norm, block.pre_bias, normed, tokens, turn);
  watch.lap(Part::norm);
  const Normed in{normed, tokens, hidden, block.eps, places, goes_on};
  float* a = std::visit([&](const auto& mixer) { return mix(mixer, in, turn, watch); }, block.mixer);
  if (!goes_on) return;
  if (wanted.rows) {
    a = gathered(a, block.o.cols, wanted, arena);
    gather(x, hidden, wanted.rows, wanted.count, wanted.x);
    if (!mixes) gather(normed, hidden, wanted.rows, wanted.count, h);
    x = wanted.x, tokens = wanted.count;
  }
  if (mixes) {
    float* projected = block.post_norm ? normed : h;
    linear(a, block.o.cols, tokens, block.o, block.o_bias, projected, hidden, turn);
    watch.lap(Part::output);
    if (block.out_norm) rmsnorm(projected, block.out_norm, projected, tokens, hidden, block.eps, turn);
    if (block.post_norm) add_and_norm(block, x, normed, block.post_norm, block.post_bias, h, tokens, turn);
    watch.lap(Part::norm);
  }
  if (!block.router.matrix.data) return;
  const float* seen = h;
  if (block.router_norm) {
    rmsnorm(x, block.router_norm, normed, tokens, hidden, block.eps, turn);
    seen = normed;
  }
  route(seen, tokens, block.router, false, ids, weights, turn);
  watch.lap(Part::route);
}

}  // namespace headrace

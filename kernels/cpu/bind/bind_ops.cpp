// The ops. First the context; then a handful of arguments by place, in the order of ops.h; where there are more, the rest
// by name.
#include "bind/address.h"
#include "bind/bind.h"
#include "ops/ops.h"
#include "runtime/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

void bind_convert(nb::module_& m) {
  m.def("quantize", [](const Context& context, Address values, int values_format, int rows, int cols, int format,
                       Address out) {
    Turn turn(context);
    quantize(at<uint8_t>(values), values_format, rows, cols, format, at<uint8_t>(out), turn);
  }, Unlocked());
  m.def("repack", [](const Context& context, Address blocks, int rows, int cols, int format, Address out) {
    Turn turn(context);
    repack(at<uint8_t>(blocks), rows, cols, format, at<uint8_t>(out), turn);
  }, Unlocked());
  m.def("dequantize", [](const Context& context, const Weights& matrix, Address out) {
    Turn turn(context);
    dequantize(matrix, at<float>(out), turn);
  }, Unlocked());
  m.def("embed", [](const Context& context, const Weights& table, Address ids, int tokens, float scale, Address out) {
    Turn turn(context);
    embed(table, at<int64_t>(ids), tokens, scale, at<float>(out), turn);
  }, Unlocked());
}

void bind_pointwise(nb::module_& m) {
  m.def("rmsnorm", [](const Context& context, Address x, Address weight, Address y, int tokens, int d, float eps) {
    Turn turn(context);
    rmsnorm(at<float>(x), at<float>(weight), at<float>(y), tokens, d, eps, turn);
  }, Unlocked());
  m.def("add_rmsnorm", [](const Context& context, Address x, Address y, Address weight, Address out, int tokens, int d,
                          float eps, float scale) {
    Turn turn(context);
    add_rmsnorm(at<float>(x), at<float>(y), at<float>(weight), at<float>(out), tokens, d, eps, scale, turn);
  }, "context"_a, "x"_a, "y"_a, "weight"_a, "out"_a, "tokens"_a, "d"_a, nb::kw_only(), "eps"_a, "scale"_a, Unlocked());
  m.def("layernorm", [](const Context& context, Address x, Address weight, Address bias, Address y, int tokens, int d,
                        float eps) {
    Turn turn(context);
    layernorm(at<float>(x), at<float>(weight), at<float>(bias), at<float>(y), tokens, d, eps, turn);
  }, Unlocked());
  m.def("add_layernorm", [](const Context& context, Address x, Address y, Address weight, Address bias, Address out,
                            int tokens, int d, float eps, float scale) {
    Turn turn(context);
    add_layernorm(at<float>(x), at<float>(y), at<float>(weight), at<float>(bias), at<float>(out), tokens, d, eps, scale,
                  turn);
  }, "context"_a, "x"_a, "y"_a, "weight"_a, "bias"_a, "out"_a, "tokens"_a, "d"_a, nb::kw_only(), "eps"_a, "scale"_a,
     Unlocked());
  m.def("glu", [](const Context& context, Address gate_up, Address out, int tokens, int width,
                  const Activation& activation) {
    Turn turn(context);
    glu(at<float>(gate_up), at<float>(out), tokens, width, activation, turn);
  }, Unlocked());
  m.def("gated_add", [](const Context& context, Address y, Address z, Address gate, int tokens, int d) {
    Turn turn(context);
    gated_add(at<float>(y), at<float>(z), at<float>(gate), tokens, d, turn);
  }, Unlocked());
  m.def("weighted_rows", [](const Context& context, Address rows, Address weights, int tokens, int top_k, int d,
                            Address y) {
    Turn turn(context);
    weighted_rows(at<float>(rows), at<float>(weights), tokens, top_k, d, at<float>(y), turn);
  }, Unlocked());
  m.def("gate_mul", [](const Context& context, Address y, Address gate, int tokens, int d, int gates, bool soft) {
    Turn turn(context);
    gate_mul(at<float>(y), at<float>(gate), tokens, d, gates, soft, turn);
  }, "context"_a, "y"_a, "gate"_a, "tokens"_a, "d"_a, nb::kw_only(), "gates"_a, "soft"_a, Unlocked());
  m.def("scale", [](const Context& context, Address x, Address by, int tokens, int d) {
    Turn turn(context);
    scale(at<float>(x), at<float>(by), tokens, d, turn);
  }, Unlocked());
  m.def("mul", [](const Context& context, Address y, int64_t y_stride, Address by, int64_t by_stride, int tokens, int d) {
    Turn turn(context);
    mul(at<float>(y), y_stride, at<float>(by), by_stride, tokens, d, turn);
  }, Unlocked());
  m.def("gated_norm", [](const Context& context, Address y, int64_t y_stride, Address z, int64_t z_stride, Address weight,
                         Address out, int tokens, int d, int groups, float eps) {
    Turn turn(context);
    gated_norm({at<float>(y), at<float>(z), at<float>(weight), y_stride, z_stride, at<float>(out), tokens, d, groups, eps},
               turn);
  }, "context"_a, nb::kw_only(), "y"_a, "y_stride"_a, "z"_a, "z_stride"_a, "weight"_a, "out"_a, "tokens"_a, "d"_a,
     "groups"_a, "eps"_a, Unlocked());
  m.def("argmax", [](const Context& context, Address logits, int rows, int n, Address values, Address ids) {
    Turn turn(context);
    argmax(at<float>(logits), rows, n, at<float>(values), at<int64_t>(ids), turn);
  }, Unlocked());
}

void bind_matrices(nb::module_& m) {
  m.def("linear", [](const Context& context, Address x, int64_t x_stride, int tokens, const Weights& weight,
                     Address bias, Address y) {
    Turn turn(context);
    linear(at<float>(x), x_stride, tokens, weight, at<float>(bias), at<float>(y), weight.rows, turn);
  }, Unlocked());
  m.def("route", [](const Context& context, Address x, int tokens, const Router& router, bool given, Address ids,
                    Address weights) {
    Turn turn(context);
    route(at<float>(x), tokens, router, given, at<int32_t>(ids), at<float>(weights), turn);
  }, Unlocked());
  m.def("experts", [](const Context& context, Address x, int tokens, Address ids, Address weights, int top_k,
                      const Bank& bank, Address y) {
    experts(at<float>(x), tokens, at<int32_t>(ids), at<float>(weights), top_k, bank, at<float>(y), context);
  }, Unlocked());
  m.attr("EXPERT_OUT_BYTES") = EXPERT_OUT_BYTES;
}

void bind_attention(nb::module_& m) {
  m.def("place_qkv", [](const Context& context, Address qkv, int tokens, int heads, const Cache& cache,
                        const Rope& rope, Address positions, Address slots, const HeadNorm& q_norm,
                        const HeadNorm& k_norm, const HeadNorm& v_norm, float eps, float clip, float v_scale,
                        bool shared) {
    Turn turn(context);
    place_qkv({at<float>(qkv), tokens, heads, cache, rope, at<int32_t>(positions), at<int64_t>(slots), q_norm, k_norm,
               v_norm, eps, clip, v_scale, shared}, turn);
  }, "context"_a, nb::kw_only(), "qkv"_a, "tokens"_a, "heads"_a, "cache"_a, "rope"_a, "positions"_a, "slots"_a,
     "q_norm"_a, "k_norm"_a, "v_norm"_a, "eps"_a, "clip"_a, "v_scale"_a, "shared"_a, Unlocked());
  m.def("rotate", [](const Context& context, Address x, int64_t token_stride, int64_t head_stride, int tokens, int heads,
                     const Rope& rope, Address positions) {
    Turn turn(context);
    rotate({at<float>(x), token_stride, head_stride, tokens, heads}, rope, at<int32_t>(positions), turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "head_stride"_a, "tokens"_a, "heads"_a, "rope"_a,
     "positions"_a, Unlocked());
  m.def("scale_rows", [](const Context& context, Address x, int64_t token_stride, int64_t head_stride, int tokens, int heads,
                         int d, Address by, Address positions) {
    Turn turn(context);
    scale_rows({at<float>(x), token_stride, head_stride, tokens, heads}, d, at<float>(by), at<int32_t>(positions), turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "head_stride"_a, "tokens"_a, "heads"_a, "d"_a, "by"_a,
     "positions"_a, Unlocked());
  m.def("linear_by_head", [](const Context& context, Address x, int64_t token_stride, int64_t head_stride, int tokens,
                             int heads, const Weights& weight, Address y) {
    Turn turn(context);
    const int each = weight.rows / heads;
    linear_by_head({at<float>(x), token_stride, head_stride, tokens, heads}, weight,
                   {at<float>(y), weight.rows, each, tokens, heads}, turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "head_stride"_a, "tokens"_a, "heads"_a, "weight"_a, "y"_a,
     Unlocked());
  m.def("attention", [](const Context& context, Address q, int64_t q_stride, const Cache& cache, Address tables,
                        Address starts, Address contexts, int sequences, int table_len, int heads, float scale,
                        int window, int chunk, Address sinks, Address out) {
    Turn turn(context);
    attention({at<float>(q), q_stride, cache, at<int32_t>(tables), at<int32_t>(starts), at<int32_t>(contexts),
               sequences, table_len, heads, scale, window, chunk, at<float>(sinks), at<float>(out),
               int64_t(heads) * cache.values.d}, turn);
  }, "context"_a, nb::kw_only(), "q"_a, "q_stride"_a, "cache"_a, "tables"_a, "starts"_a, "contexts"_a, "sequences"_a,
     "table_len"_a, "heads"_a, "scale"_a, "window"_a, "chunk"_a, "sinks"_a, "out"_a, Unlocked());
  m.def("place_index", [](const Context& context, Address k, Address norm, Address bias, float eps, const Cache& cache,
                          const Rope& rope, Address positions, Address slots, int tokens) {
    Turn turn(context);
    place_index({at<float>(k), at<float>(norm), at<float>(bias), eps, cache, rope, at<int32_t>(positions),
                 at<int64_t>(slots), tokens}, turn);
  }, "context"_a, nb::kw_only(), "k"_a, "norm"_a, "bias"_a, "eps"_a, "cache"_a, "rope"_a, "positions"_a, "slots"_a,
     "tokens"_a, Unlocked());
  m.def("choose_keys", [](const Context& context, Address q, Address weights, const Cache& cache, Address tables,
                          Address starts, Address contexts, int sequences, int table_len, int heads, int top,
                          Address slots, int rate, int page, bool numbers) {
    Turn turn(context);
    choose_keys({at<float>(q), at<float>(weights), cache, at<int32_t>(tables), at<int32_t>(starts), at<int32_t>(contexts),
                 sequences, table_len, heads, top, at<int32_t>(slots), rate, page, numbers}, turn);
  }, "context"_a, nb::kw_only(), "q"_a, "weights"_a, "cache"_a, "tables"_a, "starts"_a, "contexts"_a, "sequences"_a,
     "table_len"_a, "heads"_a, "top"_a, "slots"_a, "rate"_a, "page"_a, "numbers"_a, Unlocked());
  m.attr("NO_WINDOW") = NO_WINDOW;
  m.attr("MADE_BYTES") = MADE_BYTES;
}

void bind_recurrent(nb::module_& m) {
  m.def("short_conv", [](const Context& context, Address x, int64_t x_stride, Address weights, Address state, Address out,
                         int channels, int taps, Address bias, bool silu, Address slots, Address starts, Address contexts,
                         int sequences) {
    Turn turn(context);
    short_conv({at<float>(x), at<float>(weights), x_stride, at<float>(state), at<float>(out), channels, taps,
                at<float>(bias), silu,
                {at<int32_t>(slots), at<int32_t>(starts), at<int32_t>(contexts), sequences}}, turn);
  }, "context"_a, nb::kw_only(), "x"_a, "x_stride"_a, "weights"_a, "state"_a, "out"_a, "channels"_a, "taps"_a, "bias"_a,
     "silu"_a, "slots"_a, "starts"_a, "contexts"_a, "sequences"_a, Unlocked());
  m.def("delta_gates", [](const Context& context, Address ba, Address rate, Address dt_bias, Address decay, Address beta,
                          int tokens, int heads) {
    Turn turn(context);
    delta_gates({at<float>(ba), at<float>(rate), at<float>(dt_bias), at<float>(decay), at<float>(beta), tokens, heads}, turn);
  }, "context"_a, nb::kw_only(), "ba"_a, "rate"_a, "dt_bias"_a, "decay"_a, "beta"_a, "tokens"_a, "heads"_a, Unlocked());
  m.def("key_gates", [](const Context& context, Address dt, Address b, Address rate, Address dt_bias, Address decay,
                        Address beta, int tokens, int heads, int keys, float least) {
    Turn turn(context);
    key_gates({at<float>(dt), at<float>(b), at<float>(rate), at<float>(dt_bias), at<float>(decay), at<float>(beta), tokens,
               heads, keys, least}, turn);
  }, "context"_a, nb::kw_only(), "dt"_a, "b"_a, "rate"_a, "dt_bias"_a, "decay"_a, "beta"_a, "tokens"_a, "heads"_a, "keys"_a,
     "least"_a, Unlocked());
  m.def("delta_rule", [](const Context& context, Address q, int64_t q_stride, Address k, int64_t k_stride, Address v,
                         int64_t v_stride, Address decay, Address beta, Address state, Address out, int tokens, int groups,
                         int heads, int keys, int values, bool by_key, Address slots, Address starts, Address contexts,
                         int sequences) {
    Turn turn(context);
    delta_rule({at<float>(q), at<float>(k), at<float>(v), q_stride, k_stride, v_stride, at<float>(decay),
                at<float>(beta), at<float>(state), at<float>(out), tokens, groups, heads, keys, values, false,
                {at<int32_t>(slots), at<int32_t>(starts), at<int32_t>(contexts), sequences}, by_key}, turn);
  }, "context"_a, nb::kw_only(), "q"_a, "q_stride"_a, "k"_a, "k_stride"_a, "v"_a, "v_stride"_a, "decay"_a, "beta"_a,
     "state"_a, "out"_a, "tokens"_a, "groups"_a, "heads"_a, "keys"_a, "values"_a, "by_key"_a, "slots"_a, "starts"_a, "contexts"_a,
     "sequences"_a, Unlocked());
}

void bind_state_space(nb::module_& m) {
  m.def("state_space", [](const Context& context, Address x, int64_t x_stride, Address in, int64_t in_stride, Address by,
                          int64_t by_stride, Address dt, int64_t dt_stride, Address rate, Address dt_bias, Address skip,
                          float least, float most, Address state, Address out, int tokens, int groups, int heads, int keys,
                          int values, Address slots, Address starts, Address contexts, int sequences) {
    Turn turn(context);
    state_space({at<float>(x), at<float>(in), at<float>(by), x_stride, in_stride, by_stride, at<float>(dt), dt_stride,
                 at<float>(rate), at<float>(dt_bias), at<float>(skip), least, most, at<float>(state), at<float>(out),
                 tokens, groups, heads, keys, values,
                 {at<int32_t>(slots), at<int32_t>(starts), at<int32_t>(contexts), sequences}}, turn);
  }, "context"_a, nb::kw_only(), "x"_a, "x_stride"_a, "values_in"_a, "in_stride"_a, "by"_a, "by_stride"_a, "dt"_a,
     "dt_stride"_a, "rate"_a, "dt_bias"_a, "skip"_a, "least"_a, "most"_a, "state"_a, "out"_a, "tokens"_a, "groups"_a,
     "heads"_a, "keys"_a, "values"_a, "slots"_a, "starts"_a, "contexts"_a, "sequences"_a, Unlocked());
}

void bind_layers(nb::module_& m) {
  m.def("attention_block", [](const Context& context, const Block& block, const Places& places, Address x,
                              Address update, int tokens, Address rows, int count, Address x_out, Address h,
                              Address ids, Address weights) {
    const Wanted wanted{at<int64_t>(rows), count, at<float>(x_out)};
    attention_block(block, places, at<float>(x), at<float>(update), tokens, wanted, at<float>(h), at<int32_t>(ids),
                    at<float>(weights), context);
  }, "context"_a, "block"_a, "places"_a, nb::kw_only(), "x"_a, "update"_a, "tokens"_a, "rows"_a, "count"_a, "x_out"_a,
     "h"_a, "ids"_a, "weights"_a, Unlocked());
  m.def("layers", [](const Context& context, const Stack& stack, const Places& places, Address x, int tokens,
                     Address rows, int count, Address x_out, Address update, Address distinct, Address counts,
                     int experts, int decoding, Address ids, Address weights) {
    layers(stack, places, {at<float>(x), tokens, {at<int64_t>(rows), count, at<float>(x_out)}, at<float>(update),
                           at<int32_t>(distinct), {at<int64_t>(counts), experts, decoding, at<int32_t>(ids),
                                                   at<float>(weights)}}, context);
  }, "context"_a, "stack"_a, "places"_a, nb::kw_only(), "x"_a, "tokens"_a, "rows"_a, "count"_a, "x_out"_a, "update"_a,
     "distinct"_a, "counts"_a, "experts"_a, "decoding"_a, "ids"_a, "weights"_a, Unlocked());
}

}  // namespace

void bind_ops(nb::module_& m) {
  bind_convert(m);
  bind_pointwise(m);
  bind_matrices(m);
  bind_attention(m);
  bind_recurrent(m);
  bind_state_space(m);
  bind_layers(m);
}

}  // namespace headrace

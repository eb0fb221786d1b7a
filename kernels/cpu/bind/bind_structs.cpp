// What weights, a layer and a pass have ready: addresses and sizes, each under its name. Python cannot leave one out or
// swap two of them, as a list of numbers would let it.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/variant.h>

#include <iterator>
#include <stdexcept>

#include "bind/address.h"
#include "bind/bind.h"
#include "ops/ops.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

Weights or_none(const Weights* matrix) { return matrix ? *matrix : Weights{}; }

void bind_weights(nb::module_& m) {
  nb::class_<Weights>(m, "Matrix")
      .def("__init__", [](Weights* to, int format, int rows, int cols, Address data) {
        new (to) Weights{format, rows, cols, at<uint8_t>(data)};
      }, nb::kw_only(), "format"_a, "rows"_a, "cols"_a, "data"_a)
      .def_ro("rows", &Weights::rows)
      .def_ro("cols", &Weights::cols);
  nb::class_<Rows>(m, "Rows")
      .def("__init__", [](Rows* to, const nb::list& parts) {
        new (to) Rows{{}, 0};
        for (const nb::handle part : parts) {
          if (to->parts == int(std::size(to->part))) throw std::length_error("more than three matrices in one");
          to->part[to->parts++] = nb::cast<const Weights&>(part);
        }
      }, nb::kw_only(), "parts"_a);
  nb::class_<Activation>(m, "Activation")
      .def("__init__", [](Activation* to, float alpha, float offset, float limit, float cubic, float bend, float bend_up,
                          bool late, bool gated) {
        new (to) Activation{alpha, offset, limit, cubic, bend, bend_up, late, gated};
      }, nb::kw_only(), "alpha"_a, "offset"_a, "limit"_a, "cubic"_a, "bend"_a, "bend_up"_a, "late"_a, "gated"_a);
  nb::class_<Bank>(m, "Bank")
      .def("__init__", [](Bank* to, int gate, int up, int down, int experts, int hidden, int width, size_t bytes,
                          size_t bias_offset, const Activation& activation, bool weighs_input, Address data) {
        new (to) Bank{gate, up, down, experts, hidden, width, bytes, bias_offset, activation, weighs_input,
                      at<uint8_t>(data)};
      }, nb::kw_only(), "gate"_a, "up"_a, "down"_a, "experts"_a, "hidden"_a, "width"_a, "bytes"_a, "bias_offset"_a,
         "activation"_a, "weighs_input"_a, "data"_a);
}

void bind_router(nb::module_& m) {
  nb::class_<Router>(m, "Router")
      .def("__init__", [](Router* to, const Weights& matrix, int top_k, int scoring, bool renormalise, Address bias,
                          Address choice_bias, int groups, int top_groups, bool top2, float scale, Address factors,
                          float jitter) {
        new (to) Router{matrix, top_k, Scoring(scoring), renormalise, at<float>(bias), at<float>(choice_bias),
                        groups, top_groups, top2, scale, at<float>(factors), jitter};
      }, nb::kw_only(), "matrix"_a, "top_k"_a, "scoring"_a, "renormalise"_a, "bias"_a, "choice_bias"_a, "groups"_a,
         "top_groups"_a, "top2"_a, "scale"_a, "factors"_a, "jitter"_a);
  nb::dict scorings;
  for (const auto& [name, code] : SCORINGS) scorings[name] = int(code);
  m.attr("SCORINGS") = scorings;
}

void bind_attention(nb::module_& m) {
  nb::class_<HeadNorm>(m, "HeadNorm")
      .def("__init__", [](HeadNorm* to, Address weight, int size) { new (to) HeadNorm{at<float>(weight), size}; },
           nb::kw_only(), "weight"_a, "size"_a);
  nb::class_<Rope>(m, "Rope")
      .def("__init__", [](Rope* to, int r, Address cos, Address sin) {
        new (to) Rope{r, at<float>(cos), at<float>(sin)};
      }, nb::kw_only(), "r"_a, "cos"_a, "sin"_a);
  nb::class_<Values>(m, "Values")
      .def("__init__", [](Values* to, int d, size_t row, size_t plane, size_t page, Address data) {
        new (to) Values{d, row, plane, page, at<uint8_t>(data)};
      }, nb::kw_only(), "d"_a, "row"_a, "plane"_a, "page"_a, "data"_a);
  nb::class_<Cache>(m, "Cache")
      .def("__init__", [](Cache* to, int format, int groups, int page_keys, int d, Address k, const Values& values) {
        new (to) Cache{format, groups, page_keys, d, at<uint8_t>(k), values};
      }, nb::kw_only(), "format"_a, "groups"_a, "page_keys"_a, "d"_a, "k"_a, "values"_a);
}

void bind_mixers(nb::module_& m) {
  nb::class_<AttentionMixer>(m, "AttentionMixer")
      .def("__init__", [](AttentionMixer* to, int heads, const Rows& qkv, Address qkv_bias, const HeadNorm& q_norm,
                          const HeadNorm& k_norm, const HeadNorm& v_norm, float v_scale, bool shared,
                          const Cache& cache, const Rope& rope, float clip, float scale, int window, int chunk,
                          int kind, Address sinks, const Weights* gate, bool soft, const Rope* first, Address temperature) {
        new (to) AttentionMixer{heads, qkv, at<float>(qkv_bias), q_norm, k_norm, v_norm, v_scale, shared, cache, rope,
                                clip, scale, window, chunk, kind, at<float>(sinks), or_none(gate), soft,
                                first ? *first : Rope{}, at<float>(temperature)};
      }, nb::kw_only(), "heads"_a, "qkv"_a, "qkv_bias"_a, "q_norm"_a, "k_norm"_a, "v_norm"_a, "v_scale"_a, "shared"_a,
         "cache"_a, "rope"_a, "clip"_a, "scale"_a, "window"_a, "chunk"_a, "kind"_a, "sinks"_a, "gate"_a.none(), "soft"_a,
         "first"_a.none(), "temperature"_a);
  nb::class_<Indexer>(m, "Indexer")
      .def("__init__", [](Indexer* to, int heads, const Weights& q, const Weights& k, const Weights& weights, Address norm,
                          Address bias, float eps, const Cache& cache) {
        new (to) Indexer{heads, q, k, weights, at<float>(norm), at<float>(bias), eps, cache};
      }, nb::kw_only(), "heads"_a, "q"_a, "k"_a, "weights"_a, "norm"_a, "bias"_a, "eps"_a, "cache"_a);
  nb::class_<LatentMixer>(m, "LatentMixer")
      .def("__init__", [](LatentMixer* to, int heads, const Weights* q_a, Address q_a_norm, Address q_a_bias,
                          const Weights& q, const Weights& kv_a, Address kv_a_bias, Address kv_a_norm,
                          const Weights& k_up, const Weights& v_up, const Cache& cache, const Rope& rope,
                          float norm_eps, float scale, Address temperature, bool may_make_keys, const Weights* gate,
                          int top, const Indexer* indexer) {
        new (to) LatentMixer{heads, or_none(q_a), at<float>(q_a_norm), at<float>(q_a_bias), q, kv_a,
                             at<float>(kv_a_bias), at<float>(kv_a_norm), k_up, v_up, cache, rope, norm_eps, scale,
                             at<float>(temperature), may_make_keys, or_none(gate), top,
                             indexer ? *indexer : Indexer{}};
      }, nb::kw_only(), "heads"_a, "q_a"_a.none(), "q_a_norm"_a, "q_a_bias"_a, "q"_a, "kv_a"_a, "kv_a_bias"_a,
         "kv_a_norm"_a, "k_up"_a, "v_up"_a, "cache"_a, "rope"_a, "norm_eps"_a, "scale"_a,
         "temperature"_a, "may_make_keys"_a, "gate"_a.none(), "top"_a, "indexer"_a.none());
  nb::class_<DeltaMixer>(m, "DeltaMixer")
      .def("__init__", [](DeltaMixer* to, int k_heads, int k_dim, int v_heads, int v_dim, bool in_turns,
                          const Rows& qkv, const Weights& z, const Weights& ba, Address conv, int taps, Address rate,
                          Address dt_bias, Address norm, Address inputs, Address state, const Weights* decay,
                          const Weights* decay_low, const Weights* z_low, float least) {
        new (to) DeltaMixer{k_heads, k_dim, v_heads, v_dim, in_turns, qkv, z, ba, at<float>(conv), taps,
                            at<float>(rate), at<float>(dt_bias), at<float>(norm), at<float>(inputs), at<float>(state),
                            or_none(decay), or_none(decay_low), or_none(z_low), least};
      }, nb::kw_only(), "k_heads"_a, "k_dim"_a, "v_heads"_a, "v_dim"_a, "in_turns"_a, "qkv"_a, "z"_a, "ba"_a, "conv"_a,
         "taps"_a, "rate"_a, "dt_bias"_a, "norm"_a, "inputs"_a, "state"_a, "decay"_a.none(),
         "decay_low"_a.none(), "z_low"_a.none(), "least"_a);
}

void bind_recurrent_mixers(nb::module_& m) {
  nb::class_<ConvMixer>(m, "ConvMixer")
      .def("__init__", [](ConvMixer* to, const Weights& rows, Address rows_bias, Address conv, Address conv_bias,
                          int channels, int taps, Address inputs) {
        new (to) ConvMixer{rows, at<float>(rows_bias), at<float>(conv), at<float>(conv_bias), channels, taps,
                           at<float>(inputs)};
      }, nb::kw_only(), "rows"_a, "rows_bias"_a, "conv"_a, "conv_bias"_a, "channels"_a, "taps"_a, "inputs"_a);
  nb::class_<SpaceMixer>(m, "SpaceMixer")
      .def("__init__", [](SpaceMixer* to, int groups, int heads, int keys, int values, float least, float most,
                          const Weights& rows, Address rows_bias, Address conv, Address conv_bias, int taps,
                          Address rate, Address dt_bias, Address skip, Address norm, Address inputs, Address state) {
        new (to) SpaceMixer{groups, heads, keys, values, least, most, rows, at<float>(rows_bias), at<float>(conv),
                            at<float>(conv_bias), taps, at<float>(rate), at<float>(dt_bias), at<float>(skip),
                            at<float>(norm), at<float>(inputs), at<float>(state)};
      }, nb::kw_only(), "groups"_a, "heads"_a, "keys"_a, "values"_a, "least"_a, "most"_a, "rows"_a, "rows_bias"_a,
         "conv"_a, "conv_bias"_a, "taps"_a, "rate"_a, "dt_bias"_a, "skip"_a, "norm"_a, "inputs"_a, "state"_a);
  nb::class_<NoMixer>(m, "NoMixer").def(nb::init<>());
}

void bind_pass(nb::module_& m) {
  nb::class_<Piece>(m, "Piece")
      .def("__init__", [](Piece* to, int first, int last, int slot, int keep, Address states, Address starts,
                          Address contexts) {
        new (to) Piece{first, last, slot, keep, {at<int32_t>(states), at<int32_t>(starts), at<int32_t>(contexts), 1}};
      }, nb::kw_only(), "first"_a, "last"_a, "slot"_a, "keep"_a, "states"_a, "starts"_a, "contexts"_a);
  nb::class_<Places>(m, "Places")
      .def("__init__", [](Places* to, int tokens, Address positions, Address slots, Address tables, Address starts,
                          Address contexts, int sequences, int table_len, Address states, const nb::list& pieces,
                          const nb::list& windows) {
        new (to) Places{tokens, at<int32_t>(positions), at<int64_t>(slots), at<int32_t>(tables), at<int32_t>(starts),
                        at<int32_t>(contexts), sequences, table_len, at<int32_t>(states), {}, {}, {}};
        for (const nb::handle piece : pieces) to->pieces.push_back(nb::cast<const Piece&>(piece));
        for (const nb::handle one : windows) {
          const auto [slots, tables] = nb::cast<std::pair<Address, Address>>(one);
          to->windows.push_back({at<int64_t>(slots), at<int32_t>(tables)});
        }
      }, nb::kw_only(), "tokens"_a, "positions"_a, "slots"_a, "tables"_a, "starts"_a, "contexts"_a, "sequences"_a,
         "table_len"_a, "states"_a, "pieces"_a, "windows"_a)
      .def_ro("tokens", &Places::tokens);
}

void bind_layers(nb::module_& m) {
  nb::class_<Block>(m, "Block")
      .def("__init__", [](Block* to, int hidden, Address pre_norm, Address post_norm, Address pre_bias, Address post_bias,
                          float eps, float residual_scale, const decltype(Block::mixer)& mixer, const Weights* o,
                          Address o_bias, Address out_norm,
                          Address router_norm, const Router* router) {
        new (to) Block{hidden, at<float>(pre_norm), at<float>(post_norm), at<float>(pre_bias), at<float>(post_bias),
                       eps, residual_scale, mixer, or_none(o), at<float>(o_bias), at<float>(out_norm),
                       at<float>(router_norm), router ? *router : Router{}};
      }, nb::kw_only(), "hidden"_a, "pre_norm"_a, "post_norm"_a, "pre_bias"_a, "post_bias"_a, "eps"_a,
         "residual_scale"_a, "mixer"_a, "o"_a.none(), "o_bias"_a, "out_norm"_a, "router_norm"_a, "router"_a.none());
  nb::class_<Tail>(m, "Tail")
      .def("__init__", [](Tail* to, Address mlp_in, Address mlp_out, Address experts_out, Address out, Address scale) {
        new (to) Tail{at<float>(mlp_in), at<float>(mlp_out), at<float>(experts_out), at<float>(out), at<float>(scale)};
      }, nb::kw_only(), "mlp_in"_a, "mlp_out"_a, "experts_out"_a, "out"_a, "scale"_a);
  nb::class_<DecoderLayer>(m, "DecoderLayer")
      .def("__init__", [](DecoderLayer* to, const Block& block, const Bank* bank, const Rows* gate_up,
                          const Weights* down, const Weights* shared_gate, const Activation& activation,
                          const Tail* tail) {
        new (to) DecoderLayer{block, bank ? *bank : Bank{}, gate_up ? *gate_up : Rows{}, or_none(down),
                              or_none(shared_gate), activation, tail ? *tail : Tail{}};
      }, nb::kw_only(), "block"_a, "bank"_a.none(), "gate_up"_a.none(), "down"_a.none(), "shared_gate"_a.none(),
         "activation"_a, "tail"_a.none());
  nb::class_<Stack>(m, "Stack")
      .def("__init__", [](Stack* to, const nb::list& layers) {
        new (to) Stack;
        for (const nb::handle layer : layers) to->layers.push_back(nb::cast<const DecoderLayer&>(layer));
      }, nb::kw_only(), "layers"_a);
}

}  // namespace

void bind_structs(nb::module_& m) {
  bind_weights(m);
  bind_router(m);
  bind_attention(m);
  bind_mixers(m);
  bind_recurrent_mixers(m);
  bind_pass(m);
  bind_layers(m);
}

}  // namespace headrace

// The Python face of the C++ kernels: addresses and sizes in, nothing out but numbers.
//
// Tensors come as addresses (tensor.data_ptr()), so nothing here knows torch. Shapes, dtypes and strides were checked
// by the wrapper in kernels/cpu/__init__.py; the interpreter lock is released around every computation.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind_mailbox.h"
#include "isa.h"
#include "numa.h"
#include "ops.h"
#include "stopwatch.h"
#include "team.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nb = nanobind;
using namespace headrace;

namespace {

using Address = uintptr_t;
struct Stack {  // a class of our own, so that Python holds the layers and does not convert them for each call
  std::vector<DecoderLayer> layers;
};
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Asks for huge pages under the whole 4 KB pages inside the buffer.
bool advise_huge(Address data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr Address PAGE = 4096;
  const Address begin = (data + PAGE - 1) / PAGE * PAGE, end = (data + bytes) / PAGE * PAGE;
  return end > begin && madvise(at<void>(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
  return (void)data, (void)bytes, false;
#endif
}

void bind_machine(nb::module_& m) {
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("use_isa", &use_isa);
  m.def("available_isas", &available_isas);
  m.def("cpu_features", &cpu_features);
  m.def("set_exact", &set_exact);
  m.def("tile_tokens", &tile_tokens);
  m.def("set_tile_tokens", &set_tile_tokens);
  m.def("set_threads", &set_threads, Unlocked());
  m.def("threads", &threads, Unlocked());
  m.def("default_threads", &default_threads);
  m.def("advise_huge", &advise_huge, Unlocked());
  m.def("node_cpus", &node_cpus);
  m.def("spread_cores", &spread_cores);
  m.def("interleave", [](Address data, size_t bytes, const std::vector<int>& nodes) {
    return interleave(at<void>(data), bytes, nodes);
  }, Unlocked());
  m.def("poison_arena", [](bool on) { Arena::poison(on); });
  m.def("stream_read", [](Address data, size_t bytes) { return stream_read(at<uint8_t>(data), bytes); }, Unlocked());
  m.def("peak_rate", [](int which) { return peak_rate(Peak(which)); }, Unlocked());
  m.def("take_part_seconds", &take_part_seconds);
  m.def("region_ns", &region_ns, Unlocked());
  m.def("barrier_ns", &barrier_ns, Unlocked());
}

void bind_convert(nb::module_& m) {
  m.def("quantize", [](Address values, int values_format, int rows, int cols, int format, Address out) {
    quantize(at<uint8_t>(values), values_format, rows, cols, format, at<uint8_t>(out));
  }, Unlocked());
  m.def("dequantize", [](int format, int rows, int cols, Address data, Address out) {
    dequantize({format, rows, cols, at<uint8_t>(data)}, at<float>(out));
  }, Unlocked());
  m.def("embed", [](int format, int rows, int cols, Address data, Address ids, int tokens, float scale, Address out) {
    embed({format, rows, cols, at<uint8_t>(data)}, at<int64_t>(ids), tokens, scale, at<float>(out));
  }, Unlocked());
}

void bind_pointwise(nb::module_& m) {
  m.def("rmsnorm", [](Address x, Address weight, Address y, int tokens, int d, float eps) {
    rmsnorm(at<float>(x), at<float>(weight), at<float>(y), tokens, d, eps);
  }, Unlocked());
  m.def("add_rmsnorm", [](Address x, Address y, Address weight, Address out, int tokens, int d, float eps,
                          float scale) {
    add_rmsnorm(at<float>(x), at<float>(y), at<float>(weight), at<float>(out), tokens, d, eps, scale);
  }, Unlocked());
  m.def("silu_mul", [](Address gate_up, Address out, int tokens, int width) {
    silu_mul(at<float>(gate_up), at<float>(out), tokens, width);
  }, Unlocked());
  m.def("gated_add", [](Address y, Address z, Address gate, int tokens, int d) {
    gated_add(at<float>(y), at<float>(z), at<float>(gate), tokens, d);
  }, Unlocked());
  m.def("route", [](Address x, int tokens, int format, int rows, int cols, Address router, int top_k, bool softmax_first,
                    bool renormalise, Address ids, Address weights) {
    route(at<float>(x), tokens, {{format, rows, cols, at<uint8_t>(router)}, top_k, softmax_first, renormalise},
          at<int32_t>(ids), at<float>(weights));
  }, Unlocked());
  m.def("argmax", [](Address logits, int rows, int n, Address values, Address ids) {
    argmax(at<float>(logits), rows, n, at<float>(values), at<int64_t>(ids));
  }, Unlocked());
}

Weights matrix(const std::array<size_t, 4>& packed) {
  return {int(packed[0]), int(packed[1]), int(packed[2]), at<uint8_t>(packed[3])};
}

Bank expert_bank(const std::array<size_t, 6>& packed) {
  return {int(packed[0]), int(packed[1]), int(packed[2]), int(packed[3]), packed[4], at<uint8_t>(packed[5])};
}

// What a layer and a pass have ready: addresses and sizes, in the order of the structs in ops.h.
void bind_block(nb::module_& m) {
  nb::class_<AttentionBlock>(m, "AttentionBlock")
      .def("__init__", [](AttentionBlock* block, int heads, int r, Address pre_norm, Address post_norm,
                          std::array<size_t, 4> qkv, std::array<size_t, 4> o, Address qkv_bias, Address o_bias,
                          Address q_norm, int q_size, Address k_norm, int k_size, int format, int groups,
                          int page_keys, int d, Address k, Address v, Address cos, Address sin, float eps, float clip,
                          float scale, float residual_scale, std::array<size_t, 4> router, int top_k, bool softmax_first,
                          bool renormalise) {
        new (block) AttentionBlock{heads, r, at<float>(pre_norm), at<float>(post_norm), matrix(qkv), matrix(o),
                                   at<float>(qkv_bias), at<float>(o_bias), {at<float>(q_norm), q_size},
                                   {at<float>(k_norm), k_size}, {format, groups, page_keys, d}, at<uint8_t>(k),
                                   at<uint8_t>(v), at<float>(cos), at<float>(sin), eps, clip, scale, residual_scale,
                                   {matrix(router), top_k, softmax_first, renormalise}};
      });
  nb::class_<Places>(m, "Places")
      .def("__init__", [](Places* places, int tokens, Address positions, Address slots, Address tables, Address starts,
                          Address contexts, int sequences, int table_len) {
        new (places) Places{tokens, at<int32_t>(positions), at<int64_t>(slots), at<int32_t>(tables), at<int32_t>(starts),
                            at<int32_t>(contexts), sequences, table_len};
      })
      .def_ro("tokens", &Places::tokens);
  m.def("attention_block", [](const AttentionBlock& block, const Places& places, Address x, Address update, int tokens,
                              Address rows, int count, Address x_out, Address h, Address ids, Address weights) {
    attention_block(block, places, at<float>(x), at<float>(update), tokens, {at<int64_t>(rows), count, at<float>(x_out)},
                    at<float>(h), at<int32_t>(ids), at<float>(weights));
  }, Unlocked());
}

void bind_layers(nb::module_& m) {
  nb::class_<DecoderLayer>(m, "DecoderLayer")
      .def("__init__", [](DecoderLayer* layer, const AttentionBlock& block, std::array<size_t, 6> bank,
                          std::array<size_t, 4> gate_up, std::array<size_t, 4> down, std::array<size_t, 4> shared_gate) {
        new (layer) DecoderLayer{block, expert_bank(bank), matrix(gate_up), matrix(down), matrix(shared_gate)};
      });
  nb::class_<Stack>(m, "Stack")
      .def("__init__", [](Stack* stack, const nb::list& layers) {
        new (stack) Stack;
        for (const nb::handle layer : layers) stack->layers.push_back(nb::cast<const DecoderLayer&>(layer));
      });
  m.def("layers", [](const Stack& stack, const Places& places, Address x, int tokens, Address rows, int count,
                     Address x_out, Address update, Address distinct) {
    layers(stack.layers, places, {at<float>(x), tokens, {at<int64_t>(rows), count, at<float>(x_out)},
                                  at<float>(update), at<int32_t>(distinct)});
  }, Unlocked());
}

void bind_model(nb::module_& m) {
  m.def("linear", [](Address x, int64_t x_stride, int tokens, int format, int rows, int cols, Address data,
                     Address bias, Address y) {
    linear(at<float>(x), x_stride, tokens, {format, rows, cols, at<uint8_t>(data)}, at<float>(bias), at<float>(y));
  }, Unlocked());
  m.def("place_qkv", [](Address qkv, int tokens, int heads, int r, int format, int groups, int page_keys, int d,
                        Address k, Address v, Address cos, Address sin, Address positions, Address slots,
                        Address q_norm, int q_size, Address k_norm, int k_size, float eps, float clip) {
    place_qkv({at<float>(qkv), tokens, heads, r, {format, groups, page_keys, d}, at<uint8_t>(k), at<uint8_t>(v),
               at<float>(cos), at<float>(sin), at<int32_t>(positions), at<int64_t>(slots),
               {at<float>(q_norm), q_size}, {at<float>(k_norm), k_size}, eps, clip});
  }, Unlocked());
  m.def("attention", [](Address q, int64_t q_stride, int format, int groups, int page_keys, int d, Address k,
                        Address v, Address tables, Address starts, Address contexts, int sequences,
                        int table_len, int heads, float scale, Address out) {
    const Cache cache{format, groups, page_keys, d};
    attention({at<float>(q), q_stride, cache, at<uint8_t>(k), at<uint8_t>(v), at<int32_t>(tables), at<int32_t>(starts),
               at<int32_t>(contexts), sequences, table_len, heads, scale, at<float>(out)});
  }, Unlocked());
  m.def("experts", [](Address x, int tokens, Address ids, Address weights, int top_k, int format, int count,
                      int hidden, int width, size_t bytes, Address data, Address y) {
    experts(at<float>(x), tokens, at<int32_t>(ids), at<float>(weights), top_k,
            {format, count, hidden, width, bytes, at<uint8_t>(data)}, at<float>(y));
  }, Unlocked());
}

}  // namespace

NB_MODULE(_cpu, m) {
  bind_machine(m);
  bind_convert(m);
  bind_pointwise(m);
  bind_block(m);
  bind_layers(m);
  bind_model(m);
  bind_mailbox(m);
}

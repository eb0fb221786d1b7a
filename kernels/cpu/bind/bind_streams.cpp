// Ops of several residual streams, of keys that stand for several tokens, and of chosen blocks: arguments by name.
#include "bind/address.h"
#include "bind/bind.h"
#include "ops/pooled/pooled.h"
#include "ops/residual/residual.h"
#include "runtime/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

void bind_residual(nb::module_& m) {
  m.def("stream_weights", [](const Context& context, Address products, Address base, Address scale, int tokens, int streams,
                             int rounds, float eps, Address takes, Address gives, Address mixes) {
    Turn turn(context);
    stream_weights({at<float>(products), at<float>(base), at<float>(scale), tokens, streams, rounds, eps},
                   {at<float>(takes), at<float>(gives), at<float>(mixes)}, turn);
  }, "context"_a, nb::kw_only(), "products"_a, "base"_a, "scale"_a, "tokens"_a, "streams"_a, "rounds"_a, "eps"_a, "takes"_a,
     "gives"_a, "mixes"_a, Unlocked());
  m.def("take_streams", [](const Context& context, Address x, int64_t token_stride, int64_t stride, int tokens, int streams,
                           int d, Address takes, Address norm, float eps, Address out) {
    Turn turn(context);
    take_streams({at<float>(x), token_stride, stride, tokens, streams, d}, at<float>(takes), at<float>(norm), eps,
                 at<float>(out), turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "stride"_a, "tokens"_a, "streams"_a, "d"_a, "takes"_a, "norm"_a,
     "eps"_a, "out"_a, Unlocked());
  m.def("close_streams", [](const Context& context, Address x, int64_t token_stride, int64_t stride, int tokens, int streams,
                            int d, Address mixes, Address gives, int64_t gives_stride, Address made, Address out) {
    Turn turn(context);
    close_streams({at<float>(x), token_stride, stride, tokens, streams, d}, at<float>(mixes), at<float>(gives), gives_stride,
                  at<float>(made), at<float>(out), turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "stride"_a, "tokens"_a, "streams"_a, "d"_a, "mixes"_a, "gives"_a,
     "gives_stride"_a, "made"_a, "out"_a, Unlocked());
  m.def("fit_streams", [](const Context& context, Address x, int64_t token_stride, int64_t stride, int tokens, int streams,
                          int d, Address by, float eps, Address out) {
    Turn turn(context);
    fit_streams({at<float>(x), token_stride, stride, tokens, streams, d}, at<float>(by), eps, at<float>(out), turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "stride"_a, "tokens"_a, "streams"_a, "d"_a, "by"_a, "eps"_a,
     "out"_a, Unlocked());
  m.def("gate_streams", [](const Context& context, Address x, int64_t token_stride, int64_t stride, int tokens, int streams,
                           int d, Address open, Address out) {
    Turn turn(context);
    gate_streams({at<float>(x), token_stride, stride, tokens, streams, d}, at<float>(open), at<float>(out), turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "stride"_a, "tokens"_a, "streams"_a, "d"_a, "open"_a, "out"_a,
     Unlocked());
}

void bind_pooled(nb::module_& m) {
  m.def("fold_entries", [](const Context& context, Address made, Address weighed, Address places, Address norm, float eps,
                           const Rope& rope, const Cache& cache, Address state, int series, int rate, int page,
                           Address token_slots, Address slots, Address starts, Address contexts, int sequences) {
    Turn turn(context);
    fold_entries({at<float>(made), at<float>(weighed), at<float>(places), at<float>(norm), eps, rope, cache,
                  at<float>(state), series, rate, page, at<int64_t>(token_slots),
                  {at<int32_t>(slots), at<int32_t>(starts), at<int32_t>(contexts), sequences}}, turn);
  }, "context"_a, nb::kw_only(), "made"_a, "weighed"_a, "places"_a, "norm"_a, "eps"_a, "rope"_a, "cache"_a, "state"_a,
     "series"_a, "rate"_a, "page"_a, "token_slots"_a, "slots"_a, "starts"_a, "contexts"_a, "sequences"_a, Unlocked());
  m.def("rotate_pairs", [](const Context& context, Address x, int64_t token_stride, int64_t head_stride, int tokens,
                           int heads, int d, const Rope& rope, Address positions, bool back) {
    Turn turn(context);
    rotate_pairs({at<float>(x), token_stride, head_stride, tokens, heads}, d, rope, at<int32_t>(positions), back, turn);
  }, "context"_a, nb::kw_only(), "x"_a, "token_stride"_a, "head_stride"_a, "tokens"_a, "heads"_a, "d"_a, "rope"_a,
     "positions"_a, "back"_a, Unlocked());
  m.def("pool_runs", [](const Context& context, Address rows, Address places, int runs, int n, int d, Address out) {
    Turn turn(context);
    pool_runs(at<float>(rows), at<float>(places), runs, n, d, at<float>(out), turn);
  }, "context"_a, nb::kw_only(), "rows"_a, "places"_a, "runs"_a, "n"_a, "d"_a, "out"_a, Unlocked());
  m.def("choose_blocks", [](const Context& context, Address q, const Cache& cache, Address tables, Address starts,
                            Address contexts, int sequences, int table_len, int groups, int size, int top, int local,
                            Address blocks) {
    Turn turn(context);
    choose_blocks({at<float>(q), cache, at<int32_t>(tables), at<int32_t>(starts), at<int32_t>(contexts), sequences,
                   table_len, groups, size, top, local, at<int32_t>(blocks)}, turn);
  }, "context"_a, nb::kw_only(), "q"_a, "cache"_a, "tables"_a, "starts"_a, "contexts"_a, "sequences"_a, "table_len"_a,
     "groups"_a, "size"_a, "top"_a, "local"_a, "blocks"_a, Unlocked());
}

}  // namespace

void bind_streams(nb::module_& m) {
  bind_residual(m);
  bind_pooled(m);
  m.attr("MOST_STREAMS") = MOST_STREAMS;
}

}  // namespace headrace

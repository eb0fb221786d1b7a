// The Python face of the mailbox: addresses and numbers, as in bind.cpp. Checks are in kernels/cpu/mailbox.py.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "bind/address.h"
#include "bind/bind.h"
#include "bind/numbers.h"
#include "runtime/mailbox.h"
#include "runtime/mailbox_experts.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

// A mailbox with its memory's shape, and the experts that answer it.
struct Box {
  MailboxShape shape;
  uint8_t* memory;
  std::unique_ptr<Mailbox> mailbox;
};

void make_box(Box* box, const Context& context, const MailboxShape& shape, Address memory, const nb::list& list,
              double timeout, double spin) {
  std::vector<Bank> banks;
  for (const nb::handle bank : list) banks.push_back(nb::cast<const Bank&>(bank));
  auto experts = std::make_shared<MailboxExperts>(std::move(banks), shape, context);
  const auto micros = [](double seconds) { return Mailbox::Micros(int64_t(seconds * 1e6)); };
  auto* bytes = at<uint8_t>(memory);
  void* worker = experts.get();
  new (box) Box{shape, bytes, std::make_unique<Mailbox>(shape, bytes, MailboxExperts::work, worker, experts,
                                                        micros(timeout), micros(spin))};
}

}  // namespace

void bind_mailbox(nb::module_& m) {
  nb::class_<MailboxShape>(m, "MailboxShape")
      .def("__init__", [](MailboxShape* shape, int layers, int top_k, int hidden, bool half, const nb::list& batches) {
        new (shape) MailboxShape{layers, top_k, hidden, half, numbers<int>(batches)};
      }, nb::kw_only(), "layers"_a, "top_k"_a, "hidden"_a, "half"_a, "batches"_a)
      .def_prop_ro("bytes", &MailboxShape::bytes)
      .def("offset", &MailboxShape::offset)
      .def("parts", [](const MailboxShape& shape, int batch) {  // ids, weights, x, y, bytes of a slot
        const SlotMap map = shape.slot(batch);
        return std::make_tuple(map.ids, map.weights, map.x, map.y, map.bytes);
      });
  nb::class_<Box>(m, "Mailbox")
      .def("__init__", &make_box, nb::kw_only(), "context"_a, "shape"_a, "memory"_a, "banks"_a, "timeout"_a, "spin"_a)
      .def("begin", [](Box& box, int batch, bool patient) { return box.mailbox->begin(batch, patient); })
      .def("steps_left", [](Box& box) { return box.mailbox->steps_left(); })
      .def("served", [](Box& box) { return box.mailbox->served(); })
      .def("busy", [](Box& box) { return box.mailbox->busy(); })
      .def("failure", [](Box& box) {  // kind, layer, batch, seconds, what
        const Failure f = box.mailbox->failure();
        return std::make_tuple(int(f.kind), f.layer, f.batch, f.seconds, f.what);
      }, Unlocked())
      .def("stop", [](Box& box) { return box.mailbox->stop(); }, Unlocked())
      .def("play", [](Box& box, int batch, int steps, int gap_ns) {
        return play(*box.mailbox, box.shape, box.memory, batch, steps, std::chrono::nanoseconds(gap_ns));
      }, Unlocked());
  m.def("post_job", [](Address slot) { post_job(at(slot)); });
  m.def("wait_done", [](Address slot, double timeout) {
    return wait_done(at(slot), std::chrono::microseconds(int64_t(timeout * 1e6)));
  }, Unlocked());
  m.attr("host_post") = reinterpret_cast<Address>(&host_post);  // for cuLaunchHostFunc
  m.attr("host_wait") = reinterpret_cast<Address>(&host_wait);
  m.attr("READY_AT") = READY_AT, m.attr("DONE_AT") = DONE_AT;
}

}  // namespace headrace

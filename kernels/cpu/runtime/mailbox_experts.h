// The work behind a mailbox: the experts of a layer on the thread team, from what lies in the slot.
#pragma once

#include <vector>

#include "dispatch/context.h"
#include "ops/ops.h"
#include "runtime/mailbox.h"

namespace headrace {

// The banks of all layers, and room to widen x where it comes as bfloat16.
class MailboxExperts {
 public:
  MailboxExperts(std::vector<Bank> banks, const MailboxShape& shape, const Context& context);

  // y of the job, with the bits that `experts` gives for the same tensors in this context. Throws std::out_of_range for
  // an id that is neither -1 (computed elsewhere) nor in the layer's bank. The caller becomes worker 0 of the team.
  void run(const Job& job);

  static void work(void* context, const Job& job) { static_cast<MailboxExperts*>(context)->run(job); }

 private:
  const float* values(const Job& job);
  void settle();

  const Context context_;  // a copy: the coordinator may outlive its engine
  std::vector<Bank> banks_;
  std::vector<float> x_;
  bool settled_ = false;
};

}  // namespace headrace

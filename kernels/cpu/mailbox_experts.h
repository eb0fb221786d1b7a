// The work behind a mailbox: the experts of a layer on the thread team, from what lies in the slot.
#pragma once

#include <vector>

#include "mailbox.h"
#include "ops.h"

namespace headrace {

// The banks of all layers, and room to widen x where it comes as bfloat16.
class MailboxExperts {
 public:
  MailboxExperts(std::vector<Bank> banks, const MailboxShape& shape);

  // y of the job, with the bits that `experts` gives for the same tensors. Throws std::out_of_range for an id that is
  // neither -1 (computed elsewhere) nor in the layer's bank. The caller becomes worker 0 of the team.
  void run(const Job& job);

  static void work(void* context, const Job& job) { static_cast<MailboxExperts*>(context)->run(job); }

 private:
  const float* values(const Job& job);

  std::vector<Bank> banks_;
  std::vector<float> x_;
};

}  // namespace headrace

// A job's x as the experts op takes it; a job without experts needs no team. See mailbox_experts.h.
//
// The slot holds no count of the pairs that are ours: the ids are few, are read anyway, and whoever writes the job would
// have to count over all tokens first.
#include "runtime/mailbox_experts.h"

#include <algorithm>
#include <cstring>

#include "runtime/team.h"

namespace headrace {

MailboxExperts::MailboxExperts(std::vector<Bank> banks, const MailboxShape& shape, const Context& context)
    : context_(context), banks_(std::move(banks)) {
  const size_t tokens = *std::max_element(shape.batches.begin(), shape.batches.end());
  if (shape.half) x_.resize(tokens * shape.hidden);
}

// x as float32: where it lies, or widened.
const float* MailboxExperts::values(const Job& job) {
  if (!job.half) return static_cast<const float*>(job.x);
  const auto* from = static_cast<const uint16_t*>(job.x);
  const size_t count = size_t(job.tokens) * job.hidden;
  for (size_t i = 0; i < count; i++) {
    const uint32_t bits = uint32_t(from[i]) << 16;
    std::memcpy(&x_[i], &bits, sizeof bits);
  }
  return x_.data();
}

// The coordinator calls the team and starts no thread: it gets the core that the workers left to the caller. Not before
// there is a team, whose workers would take over its mask.
void MailboxExperts::settle() {
  if (!settled_) TeamTurn(context_.threads).team.pin_caller();
  settled_ = true;
}

void MailboxExperts::run(const Job& job) {
  const int pairs = job.tokens * job.top_k;
  if (std::all_of(job.ids, job.ids + pairs, [](int32_t id) { return id == -1; })) {
    std::memset(job.y, 0, size_t(job.tokens) * job.hidden * sizeof(float));
    return;
  }
  settle();
  experts(values(job), job.tokens, job.ids, job.weights, job.top_k, banks_[job.layer], job.y, context_);
}

}  // namespace headrace

// One op's turn: the team of as many threads as its context asks for, held until the turn ends, and the context.
#pragma once

#include "dispatch/context.h"
#include "runtime/team.h"

namespace headrace {

class Turn : public TeamTurn {
 public:
  explicit Turn(const Context& context_) : TeamTurn(context_.threads), context(context_), isa(*context_.isa) {
    prefetch_far = context.ahead[0], prefetch_near = context.ahead[1];
  }

  const Context& context;
  const Kernels& isa;
};

}  // namespace headrace

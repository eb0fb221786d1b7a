// Recurrent mixers: tokens go through piece by piece, and behind a piece some states are kept in another slot. `by_piece` in
// kernels/mixers.py says the same.
#pragma once

#include <cstring>
#include <initializer_list>
#include <stdexcept>

#include "ops/mixers/mixers.h"

namespace headrace {

struct Kept {  // states by slot
  float* first;
  size_t size;  // floats of one slot
};

// run(first, last, sequences) over all tokens, in order.
template <class Run>
void by_piece(const Normed& in, std::initializer_list<Kept> states, Run run) {
  const Places& places = in.places;
  if (!places.states) throw std::invalid_argument("a pass without slots of states");
  if (places.pieces.empty()) return run(0, in.tokens, Sequences{places.states, places.starts, places.contexts, places.sequences});
  for (const Piece& piece : places.pieces) {
    run(piece.first, piece.last, piece.alone);
    if (piece.keep < 0) continue;
    for (const Kept& one : states)
      std::memcpy(one.first + piece.keep * one.size, one.first + piece.slot * one.size, one.size * sizeof(float));
  }
}

}  // namespace headrace

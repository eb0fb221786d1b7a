// The loop of the ops that treat one token at a time: each worker takes a run of tokens.
//
// One token is quicker than waking the team, so small work stays with the caller. A token is never split: its sums have
// one order for any number of threads.
#pragma once

#include "runtime/team.h"

namespace headrace {

// fn(token) for every token; `values` says how much work they are together.
template <class Fn>
void each_token(Team& team, int tokens, int64_t values, const Fn& fn) {
  constexpr int64_t SMALL = 32768;  // values: less than this is done by the caller alone
  team.run(values < SMALL || tokens == 1, [&](int worker) {
    const Range mine = part_of(tokens, team.active(), worker);
    for (int t = mine.begin; t < mine.end; t++) fn(t);
  });
}

}  // namespace headrace

// The best of some scores: those above a cut, and of those equal to it the first ones.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

namespace headrace {

// Scores as numbers that rise with them, NaN above all or below all; 0 and -0 are one.
inline uint32_t rising(float score) {
  uint32_t bits;
  score += 0.0f;
  std::memcpy(&bits, &score, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Cut {
  uint32_t least;
  int equal;  // of those that are as good as the least, so many are taken
  bool all;

  // Asked in the order of scores; `left` begins as `equal`.
  bool takes(float score, int& left) const {
    if (all) return true;
    const uint32_t mine = rising(score);
    return mine > least || (mine == least && left-- > 0);
  }
};

// Of the `top` best of n scores; order: scratch [n].
inline Cut best_of(const float* scores, int n, int top, uint32_t* order) {
  if (n <= top) return {0, n, true};
  for (int i = 0; i < n; i++) order[i] = rising(scores[i]);
  std::nth_element(order, order + top - 1, order + n, std::greater<uint32_t>());
  const uint32_t least = order[top - 1];
  return {least, top - int(std::count_if(order, order + top, [=](uint32_t one) { return one > least; })), false};
}

}  // namespace headrace

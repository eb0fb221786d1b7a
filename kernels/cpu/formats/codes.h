// Codes of block formats over any ints_*.h: planes of 1, 2, 4 or 8 bits become bytes, a block to a lane.
//
//   C::HIGH, LOW   bits of the two planes, in the order in which they are stored; HIGH is 0 where there is one
//   C::join(low, high, q)   the words of both planes to bytes: q[j] holds weights 4 j .. 4 j + 3 of each lane's block
//   C::OFFSET    what is to be taken away of the bytes of q, as a power of two or 0
//   C::WIDE      whether they take more than 7 bits, so that products go through dot_wide
//
// Where a plane's fields lie: formats.py. load_codes puts the blocks of one row into lanes; panels.h puts the same block of 16
// rows there. What a lane holds makes no difference to `join`.
#pragma once

#include "formats/layout.h"
#include "isa/math.h"

namespace headrace {
namespace {

constexpr int WORDS = BLOCK / 4;  // vectors of a step
using Step = I[WORDS];

// The k words of each block, in lanes: a[d] has word d. `p` is where the first block's words lie.
template <int K, bool FULL>
inline __attribute__((always_inline)) void load_plane(const uint8_t* p, int n, I* a) {
#pragma GCC unroll 8
  for (int i = 0; i < K; i++) {
    if (FULL && (i * W * 4) % 64 == 0) prefetch_weights(p + i * W * 4);
    a[i] = FULL ? int_load(p + i * W * 4) : int_load_n(p + i * W * 4, K * n - i * W);
  }
  if (K == 1) a[0] = in_lanes(a[0]);
  if (K == 2) turn_pairs(a);
  if (K == 4) turn(a);
  if (K == 8) turn_eights(a);
}

// Field `at` of the bytes of a, k bits each, moved up by `to` bits; everything else is 0.
template <int K, int AT, int TO>
inline __attribute__((always_inline)) I field(I a) {
  constexpr uint32_t mask = 0x01010101u * (((1u << K) - 1) << TO);
  if (AT == 0 && TO == 0 && K == 8) return a;
  return bit_and(AT * K > TO ? shift_right<(AT * K > TO ? AT * K - TO : 0)>(a) : shift_left<(AT * K > TO ? 0 : TO - AT * K)>(a),
                 int_set1(mask));
}

// Spreads a plane over the bytes of q, `to` bits up: field f of word d belongs to vector f k + d.
template <int K, int TO, int AT = 0>
inline __attribute__((always_inline)) void spread(const I* a, Step& q) {
  if constexpr (AT < 8 / K) {
#pragma GCC unroll 8
    for (int d = 0; d < K; d++) {
      const I bits = field<K, AT, TO>(a[d]);
      q[AT * K + d] = TO ? bit_or(q[AT * K + d], bits) : bits;
    }
    spread<K, TO, AT + 1>(a, q);
  }
}

template <int HIGH_, int LOW_, int OFFSET_>
struct Planes {
  static constexpr int HIGH = HIGH_, LOW = LOW_, OFFSET = OFFSET_;
  static constexpr bool WIDE = false;

  static inline __attribute__((always_inline)) void join(const I* low, const I* high, Step& q) {
    spread<LOW, 0>(low, q);
    if constexpr (HIGH > 0) spread<HIGH, LOW>(high, q);
  }
};

// Signed bytes.
struct Bytes8 {
  static constexpr int HIGH = 0, LOW = 8, OFFSET = BYTE_OFFSET;
  static constexpr bool WIDE = true;

  static inline __attribute__((always_inline)) void join(const I* low, const I*, Step& q) {
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++) q[j] = BYTE_OFFSET ? bit_xor(low[j], int_set1(0x80808080u)) : low[j];
  }
};

// Codes of up to 4 bits that stand for the values of T.
template <class T, int HIGH_ = 0, int LOW_ = 4>
struct Table {
  static constexpr int HIGH = HIGH_, LOW = LOW_, OFFSET = BYTE_OFFSET;
  static constexpr bool WIDE = true;

  struct alignas(16) Values {
    int8_t at[16];
  };
  static constexpr Values values = [] {
    Values made{};
    for (int i = 0; i < 16; i++) made.at[i] = int8_t(uint8_t(T::VALUES[i] + BYTE_OFFSET));
    return made;
  }();

  static inline __attribute__((always_inline)) void join(const I* low, const I* high, Step& q) {
    Planes<HIGH, LOW, 0>::join(low, high, q);
#pragma GCC unroll 8
    for (int j = 0; j < WORDS; j++) q[j] = lookup(q[j], values.at);
  }
};

struct Iq4Values {
  static constexpr int VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
};
struct E2m1Values {  // twice the values
  static constexpr int VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
};
// The values that points of a grid have.
struct Iq3sValues {
  static constexpr int VALUES[16] = {-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15};
};
struct Iq3xxsValues {
  static constexpr int VALUES[16] = {-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62};
};
struct Iq2Values {
  static constexpr int VALUES[16] = {-43, -25, -8, 8, 25, 43};
};
struct Iq1Values {
  static constexpr int VALUES[16] = {-9, -7, -1, 1, 7, 9};
};

template <class C>
constexpr size_t BLOCK_BYTES = size_t(C::HIGH + C::LOW) * 4;  // of codes

// Blocks first .. first + n of a group of `blocks`, n <= W (n = W if FULL), a block to a lane.
template <class C, bool FULL>
inline __attribute__((always_inline)) void load_codes(const uint8_t* group, int blocks, int first, int n, Step& q) {
  I low[C::LOW], high[C::HIGH ? C::HIGH : 1];
  if (!FULL) prefetch_lines(group + size_t(first) * BLOCK_BYTES<C>, size_t(n) * BLOCK_BYTES<C>);
  if constexpr (C::HIGH > 0) load_plane<C::HIGH, FULL>(group + first * 4 * C::HIGH, n, high);
  load_plane<C::LOW, FULL>(group + (blocks * C::HIGH + first * C::LOW) * 4, n, low);
  C::join(low, high, q);
}

}  // namespace
}  // namespace headrace

// Levels that are guessed before a block is scored, from where the k-th scores of earlier rows lie: then one bit a key is
// all that is kept of a score, and a list is right at once, however many keys there are. As with every list, what is
// chosen from it is proved afterwards; a wrong guess costs time, not keys.
#ifndef GRAFT_GUESS8_H_
#define GRAFT_GUESS8_H_

#include "search8.h"

namespace graft {
namespace {

// The k-th scores of rows that are done, in norms of their queries; and how fast scores become fewer below them.
struct Habit {
  float mean = 0.0f, spread = 0.0f, rate = 0.0f;
  bool known = false, broken = false;  // broken: it was trusted, and wrong too often
};

// About log(n / k), for numbers that are not far apart.
inline float log_ratio(int64_t n, int64_t k) { return 2.0f * static_cast<float>(n - k) / static_cast<float>(n + k); }

inline bool is_left(uint64_t rows, int64_t r) { return (rows >> r & 1) != 0; }

// From the rows that are not `left`.
inline void learn(const Topk8Scratch& x, const Block& k, int64_t top_k, uint64_t left, Habit* habit) {
  float count = 0.0f, sum = 0.0f, squares = 0.0f, depth = 0.0f, logs = 0.0f;
  for (int64_t r = 0; r < k.rows; ++r) {
    const Row8& row = x.rows[r];
    if (is_left(left, r)) continue;
    const float share = (row.lowest - row.base) / row.length;
    count += 1.0f, sum += share, squares += share * share;
    depth += share - row.unit * static_cast<float>(x.found[r].level) / row.length;
    logs += log_ratio(x.found[r].count, top_k);
  }
  habit->mean = sum / count;
  habit->spread = __builtin_sqrtf(most(0.0f, squares / count - habit->mean * habit->mean));
  habit->rate = logs / depth;
  habit->known = __builtin_fabsf(habit->mean) + habit->spread < kInf && habit->rate > 0.0f;  // and no NaN
}

constexpr float kSpreads = 2.7f;  // so far below the mean, a guess is too high for few rows in a thousand

inline void guess_row(const Habit& habit, Row8* row) {
  const float lowest = (habit.mean - kSpreads * habit.spread) * row->length;
  const float level = __builtin_floorf((lowest - row->bound) * row->bias_unit);
  row->guess = most(static_cast<float>(kHidden + 2), least(level, kRange8));
}

// Where the k-th score lies, by how many were listed.
inline void expect(const Habit& habit, int64_t k, Row8* row) {
  const float norms = row->length / habit.rate;
  row->expected = row->base + row->unit * row->guess + norms * log_ratio(row->best.count, k);
  row->step = 10.0f * norms / static_cast<float>(k);
}

// Lists what exceeds the guesses. False where there is no room for it.
template <class L>
inline bool list_guessed(const Search8& s, const Habit& habit, float top) {
  const Topk8Scratch& x = s.x;
  for (int64_t r = 0; r < s.k.rows; ++r) {
    guess_row(habit, &x.rows[r]);
    x.found[r].level = static_cast<int>(x.rows[r].guess);
  }
  for (int64_t first = s.walk.at / kPanelKeys * kPanelKeys; first < s.walk.end;) {
    const Chunk chunk = score_chunk<L, typename L::ToBits>(s, top, 0, &first);
    if (!L::list_bits(s, chunk)) return false;
  }
  for (int64_t r = 0; r < s.k.rows; ++r) {
    x.rows[r].best.count = x.found[r].count;
    expect(habit, s.p.top_k, &x.rows[r]);
  }
  return true;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_GUESS8_H_

// The keys that top-k attention did not choose, where they keep their mass: over the whole row it goes to the mean of
// their values, over each block of 64 keys to the mean of all the block's values, the chosen ones among them.
//
// The sum of a block's values is known beforehand, so a row mixes the sums of blocks and the values of its chosen keys.
// Where these have no part in the mean, their weights lose what the sums give them. Where a row does not see a block
// whole, or has chosen so much of it that this difference would lose digits, the block's other keys are listed one by
// one; then the weights of the chosen ones gain what a mean with them is to give them.
#ifndef GRAFT_REMAINDER_H_
#define GRAFT_REMAINDER_H_

#include "../vector/select.h"
#include "mean.h"

namespace graft {
namespace {

constexpr int64_t kBlockKeys = 64;
constexpr float kFaint = 80.0f;  // a key whose score lies further below the row's best has no part in a mean

// Of every block of keys: the sum of the values that key_bias does not hide, and how many they are.
struct BlockSums {
  float* values;   // [b][heads][blocks + 1][e]; the last row of a head is room
  int32_t* sizes;  // [b][heads][blocks]; -1 where a sum is not finite, from which no value can be taken off
};

inline int64_t blocks_of(const Problem& p) { return ceil_div(p.t, kBlockKeys); }
inline int64_t heads_with_sums(const Problem& p) { return p.key_bias_h != 0 ? p.h : p.g; }

// Which of them a block of rows reads.
inline int64_t sums_of(const Problem& p, const Block& k) {
  return k.b * heads_with_sums(p) + (p.key_bias_h != 0 ? k.head : k.g);
}

struct SumsJob {
  const Problem* p;
  BlockSums sums;
};

inline BlockSums cut_sums(const Problem& p, Arena* arena) {
  const int64_t heads = p.b * heads_with_sums(p), n = blocks_of(p);
  return {arena->take<float>(heads * (n + 1) * p.e), arena->take<int32_t>(heads * n)};
}

inline bool finite(const float* x, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * 0.0f;
  return sum == 0.0f;
}

template <class V>
inline void sums_task(void* state, int64_t index) {
  const SumsJob& job = *static_cast<SumsJob*>(state);
  const Problem& p = *job.p;
  const int64_t heads = heads_with_sums(p), n = blocks_of(p), head = index % heads;
  const Block k{index / heads, head / (heads / p.g), head, 0, 0};
  const float* bias = p.key_bias == nullptr ? nullptr : p.key_bias + k.b * p.key_bias_b + head * p.key_bias_h;
  float *sums = job.sums.values + index * (n + 1) * p.e, *row = sums + n * p.e;
  int32_t* sizes = job.sums.sizes + index * n;
  for (int64_t i = 0; i < n * p.e; ++i) sums[i] = 0.0f;
  for (int64_t i = 0; i < n; ++i) sizes[i] = 0;
  for (int64_t j = 0; j < p.t; ++j) {
    if (bias != nullptr && bias[j] == -kInf) continue;
    const graft_tensor& v = p.args.v;
    widen_row<V>(element(head_data(k, v), v.dtype, j * v.strides[2]), v.dtype, p.e, row);
    add_all<V>(p.e, row, sums + j / kBlockKeys * p.e);
    ++sizes[j / kBlockKeys];
  }
  for (int64_t i = 0; i < n; ++i) sizes[i] = finite(sums + i * p.e, p.e) ? sizes[i] : -1;
}

// A row's keys, and what is left of each block when the chosen ones are gone.
struct Rest {
  float* scores;  // [t], padded to whole blocks: -inf for hidden keys and for those that are listed
  Candidates list, blocks;  // keys that are mixed, and blocks: their weights and their numbers
  float *mass, *level;      // [blocks]: the sum of weights left, and the weight that each key of the mean gets
  int32_t *taken, *left;    // [blocks]: chosen keys, and others that are not faint
  float* out;               // [e]
};

inline int64_t rest_stride(const Problem& p) { return blocks_of(p) * kBlockKeys; }

inline Candidates cut_list(int64_t n, Arena* arena) {
  return {arena->take<float>(n + 64), arena->take<float>(n + 64), 0, -kInf};
}

// Scores are those of all rows of a task.
inline Rest cut_rest(const Problem& p, int64_t rows, Arena* arena) {
  const bool any = p.args.remainder != GRAFT_REMAINDER_NONE;
  const int64_t n = any ? blocks_of(p) : 0;
  Rest x;
  x.scores = arena->take<float>(rows * n * kBlockKeys);
  x.list = cut_list(any ? p.t : 0, arena);
  x.blocks = cut_list(n, arena);
  x.mass = arena->take<float>(n);
  x.level = arena->take<float>(n);
  x.taken = arena->take<int32_t>(n);
  x.left = arena->take<int32_t>(n);
  x.out = arena->take<float>(any ? p.e : 0);
  return x;
}

inline void begin_rest(const Problem& p, int64_t rows, const Rest& x) {
  if (p.args.remainder == GRAFT_REMAINDER_NONE) return;
  for (int64_t i = 0; i < rows * rest_stride(p); ++i) x.scores[i] = -kInf;
}

// Keeps scores `before` .. n - 1, which belong to the tile's keys from `first` on.
inline void keep_scores(const Tile& tile, int64_t first, int64_t before, int64_t n, const float* scores, float* row) {
  const int32_t* ids = tile.ids + first;
  if (tile.adjoining) memcpy(row + ids[before], scores + before, static_cast<size_t>(n - before) * sizeof *scores);
  else for (int64_t j = before; j < n; ++j) row[ids[j]] = scores[j];
}

inline int32_t id_at(const Candidates& c, int64_t i) {
  int32_t id;
  memcpy(&id, c.ids + i, sizeof id);
  return id;
}

inline void add_to(Candidates* c, float score, int64_t id) {
  const int32_t small = static_cast<int32_t>(id);
  c->scores[c->count] = score;
  memcpy(c->ids + c->count++, &small, sizeof small);
}

inline void list_key(Rest* x, int64_t id) {
  add_to(&x->list, x->scores[id], id);
  x->scores[id] = -kInf;
}

// Lists the chosen keys, and for means by block those of the block in which the query stands.
inline void list_chosen(const Problem& p, const Candidates& best, int64_t place, Rest* x) {
  x->list.count = 0;
  for (int64_t i = 0; i < blocks_of(p); ++i) x->taken[i] = 0;
  for (int64_t i = 0; i < best.count; ++i) {
    list_key(x, id_at(best, i));
    ++x->taken[id_at(best, i) / kBlockKeys];
  }
  if (p.args.remainder != GRAFT_REMAINDER_BLOCKS || place < 0 || place >= rest_stride(p)) return;
  const int64_t first = place / kBlockKeys * kBlockKeys;
  for (int64_t j = first; j < first + kBlockKeys; ++j) {
    if (x->scores[j] > -kInf) list_key(x, j);
  }
}

// What is left of every block.
template <class V>
inline void measure_blocks(int64_t n, float high, const Rest& x) {
  const typename V::F top = V::set1(high), faint = V::set1(below(high - kFaint)), zero = V::set1(0.0f);
  for (int64_t i = 0; i < n; ++i) {
    typename V::F mass = zero;
    x.left[i] = 0;
    for (int64_t j = i * kBlockKeys; j < (i + 1) * kBlockKeys; j += V::lanes) {
      const typename V::F score = V::load(x.scores + j);
      const typename V::M counts = V::gt(score, faint);
      mass = V::add(mass, V::blend(counts, vexp<V>(V::sub(score, top)), zero));
      x.left[i] += V::count(counts);
    }
    x.mass[i] = V::reduce_add(mass);
  }
}

// Whether the chosen keys have a part in the mean.
inline bool mean_has_chosen(const Problem& p) { return p.args.remainder == GRAFT_REMAINDER_BLOCKS; }

// The weight that each key of a block's mean gets; returns the whole mass left. Chosen keys count as such even if they
// are faint: then so are all others, and there is no mass.
inline float find_levels(const Problem& p, const Rest& x) {
  float mass = 0.0f;
  int64_t left = 0;
  const int64_t n = blocks_of(p);
  for (int64_t i = 0; i < n; ++i) mass += x.mass[i], left += x.left[i];
  const float whole = mass / static_cast<float>(most<int64_t>(left, 1));
  for (int64_t i = 0; i < n; ++i) {
    const float own = x.mass[i] / static_cast<float>(most(x.left[i] + x.taken[i], 1));
    x.level[i] = mean_has_chosen(p) ? own : whole;
  }
  return mass;
}

// Lists the blocks whose sums serve, and of the others the keys. Leaves as level what the weights of the chosen keys
// gain: what the mean is to give them less what the sum gives them.
inline void list_blocks(const Problem& p, const int32_t* sizes, float high, Rest* x) {
  const bool with_chosen = mean_has_chosen(p);
  x->blocks.count = 0;
  for (int64_t i = 0; i < blocks_of(p); ++i) {
    const bool any = x->left[i] > 0 && x->level[i] > 0.0f;
    const bool whole = any && x->left[i] + x->taken[i] == sizes[i] && (with_chosen || x->left[i] >= x->taken[i]);
    if (whole) add_to(&x->blocks, x->level[i], i);
    for (int64_t j = i * kBlockKeys; any && !whole && j < (i + 1) * kBlockKeys; ++j) {
      if (x->scores[j] >= high - kFaint) add_to(&x->list, x->level[i], j);
    }
    const float due = with_chosen ? 1.0f : 0.0f, given = whole ? 1.0f : 0.0f;
    x->level[i] *= due - given;
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_REMAINDER_H_

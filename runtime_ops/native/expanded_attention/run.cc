// Expanded attention as attention of TopKAttention's kernels: queries times w_k, the memory as keys and as values of one
// head, and what they gather times w_v. All heads and beams that read a row of the memory are heads of one key head, so
// that every tile of the memory is read once for all of them. Long queries and large batches go through in parts.
#include <math.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../dispatch.h"
#include "../topk_attention/plan.h"
#include "../vector/math.h"
#include "problem.h"

namespace graft {
namespace {

constexpr int64_t kPart = int64_t{1} << 22;  // expanded queries that exist at one time
constexpr int64_t kFar = int64_t{1} << 59;   // pasts beyond it change nothing, and nothing overflows
constexpr int64_t kBlock = 64;               // rows for which a tile of the memory is read

// Rows of q that read adjacent rows of the memory, the same number each.
struct Group {
  int64_t row, memory;     // the first of either
  int64_t batches, beams;  // rows of the memory, and of q for each
};

// The part [first, first + count) of a tensor along an axis; an axis of length 1 that is repeated stays as it is.
void cut(graft_tensor* x, int axis, int64_t first, int64_t count) {
  if (x->data == nullptr) return;
  x->data = static_cast<char*>(x->data) + first * x->strides[axis] * element_size(x->dtype);
  x->shape[axis] = std::min(x->shape[axis], count);
}

// Whether the bias has a row for each of q's, not for each of the memory's.
bool by_row(const Expanded& p) {
  return p.args.bias.shape[0] == p.n && (p.n != p.b || p.args.beam_index.data != nullptr);
}

// Whether the bias of all beams is the same and depends on the key alone, as the mask of a sentence does.
bool repeats(const Expanded& p, const Group& group) {
  const graft_tensor& x = p.args.bias;
  if (x.strides[1] != 0 || x.strides[2] != 0) return false;
  const auto at = [&](int64_t row, int64_t key) {
    return widen1(x.data, x.dtype, (group.row + row) * x.strides[0] + key * x.strides[3]);
  };
  for (int64_t row = 0; row < group.batches * group.beams; ++row) {
    const int64_t first = row - row % group.beams;
    for (int64_t j = 0; row != first && j < p.t; ++j) {
      if (at(row, j) != at(first, j)) return false;
    }
  }
  return true;
}

// Whether the bias of all heads of all beams lies at equal distances.
bool folds(const Expanded& p, const Group& group) {
  const graft_tensor& x = p.args.bias;
  if (x.data == nullptr || group.beams == 1) return true;
  const int64_t beam = by_row(p) ? x.strides[0] : 0;
  return p.h == 1 || beam == p.h * x.strides[1] || (beam != 0 && repeats(p, group));
}

// The group in parts of as many rows as are expanded at one time.
void add_parts(const Expanded& p, const Group& x, std::vector<Group>* parts) {
  const int64_t most = std::max<int64_t>(1, kPart / std::max<int64_t>(1, x.beams * p.h * p.m));
  for (int64_t i = 0; i < x.batches; i += most) {
    parts->push_back({x.row + i * x.beams, x.memory + i, std::min(most, x.batches - i), x.beams});
  }
}

std::vector<Group> groups_of(const Expanded& p) {
  std::vector<Group> groups;
  const graft_tensor& index = p.args.beam_index;
  const auto memory = [&](int64_t i) { return static_cast<const int64_t*>(index.data)[i * index.strides[0]]; };
  if (index.data == nullptr) groups.push_back({0, 0, p.b, p.n / p.b});
  for (int64_t i = 0, end; index.data != nullptr && i < p.n; i = end) {
    for (end = i + 1; end < p.n && memory(end) == memory(i); ++end) {
    }
    groups.push_back({i, memory(i), 1, end - i});
  }
  std::vector<Group> parts;
  for (const Group& x : groups) {
    if (folds(p, x)) {
      add_parts(p, x, &parts);
      continue;
    }
    for (int64_t i = 0; i < x.batches * x.beams; ++i) parts.push_back({x.row + i, x.memory + i / x.beams, 1, 1});
  }
  return parts;
}

// The bias [n h s t] or [b h s t] of a group, its beams and heads as one axis.
graft_tensor folded_bias(const Expanded& p, const Group& x) {
  graft_tensor bias = p.args.bias;
  if (bias.data == nullptr) return bias;
  const bool shared = bias.strides[0] == 0;
  cut(&bias, 0, by_row(p) ? x.row : x.memory, x.batches);
  if (by_row(p)) {
    if (p.h == 1) bias.strides[1] = bias.strides[0];
    bias.strides[0] *= x.beams;
  }
  bias.shape[0] = shared ? 1 : x.batches;
  if (bias.strides[1] != 0 || bias.shape[1] != 1) bias.shape[1] = p.h * x.beams;  // no tokens: all strides are 0
  return bias;
}

class Run {
 public:
  Run(const Expanded& p, const ExpandedKernel& kernel, const Group& group)
      : p_(p), kernel_(kernel), group_(group), rows_(group.batches * group.beams) {}

  const char* all() {
    const int64_t s = std::max<int64_t>(1, std::min(p_.s, kPart / std::max<int64_t>(1, rows_ * p_.h * p_.m)));
    const size_t size = static_cast<size_t>(rows_ * p_.h * s * p_.m);
    wide_.reset(new float[size]), found_.reset(new float[size]);
    for (int64_t first = 0; first < p_.s; first += s) {
      const char* error = part(first, std::min(s, p_.s - first));
      if (error != nullptr) return error;
    }
    return nullptr;
  }

 private:
  const char* part(int64_t first, int64_t s) {
    graft_tensor q = p_.args.q, out = p_.args.out;
    for (graft_tensor* x : {&q, &out}) cut(x, 0, group_.row, rows_), cut(x, 2, first, s);
    const graft_tensor wide = made(wide_.get(), s), found = made(found_.get(), s);
    const char* error = kernel_.multiply({q, p_.args.w_k, wide, false, nullptr, nullptr, p_.pool});
    if (error != nullptr) return error;
    Plan plan;
    const std::string refused = make_wide_plan(attention(first, s), p_.pool, &plan);
    if (!refused.empty()) return keep(refused);
    plan.problem.block_rows = block_rows(plan.problem);
    error = kernel_.attend(plan.problem);
    if (error != nullptr) return error;
    const bool biased = p_.args.b_v.data != nullptr, some = p_.args.no_key == GRAFT_NO_KEY_ZERO || p_.t == 0;
    if (biased && some) find_seen(plan.problem);
    const uint8_t* seen = some ? seen_.data() : nullptr;
    return kernel_.multiply({found, p_.args.w_v, out, true, biased ? &p_.args.b_v : nullptr, seen, p_.pool});
  }

  // [rows h s m] of the numbers that are made on the way.
  graft_tensor made(float* data, int64_t s) const {
    return {data, GRAFT_F32, 4, {rows_, p_.h, s, p_.m}, {p_.h * s * p_.m, s * p_.m, p_.m, 1}};
  }

  graft_topk_attention attention(int64_t first, int64_t s) {
    const int64_t heads = group_.beams * p_.h, batches = group_.batches;
    graft_topk_attention a{};
    a.q = {wide_.get(), GRAFT_F32, 4, {batches, heads, s, p_.m}, {heads * s * p_.m, s * p_.m, p_.m, 1}};
    a.out = a.q;
    a.out.data = found_.get();
    const graft_tensor& x = p_.args.memory;
    a.k = {x.data, x.dtype, 4, {p_.b, 1, p_.t, p_.m}, {x.strides[0], 0, x.strides[1], x.strides[2]}};
    cut(&a.k, 0, group_.memory, batches);
    a.k.shape[0] = batches;
    a.v = a.k;
    a.bias = folded_bias(p_, group_), a.key_mask = p_.args.key_mask;
    cut(&a.bias, 2, first, s), cut(&a.key_mask, 0, group_.memory, batches);
    a.top_k = p_.args.top_k, a.scale = p_.args.scale, a.softcap = p_.args.softcap, a.causal = p_.args.causal;
    a.window = p_.args.window, a.no_key = p_.args.no_key;
    if (a.causal || a.window > 0) set_past(first, &a);
    return a;
  }

  void set_past(int64_t first, graft_topk_attention* a) {
    const graft_tensor& x = p_.args.past_length;
    past_.assign(static_cast<size_t>(group_.batches), first);
    for (int64_t i = 0; x.data != nullptr && i < group_.batches; ++i) {
      const int64_t past = static_cast<const int64_t*>(x.data)[(group_.memory + i) * x.strides[0]];
      past_[static_cast<size_t>(i)] += std::max(-kFar, std::min(past, kFar));
    }
    a->past_length = {past_.data(), GRAFT_I64, 1, {group_.batches}, {1}};
  }

  // As many rows as share a tile well, and a task for every thread.
  int64_t block_rows(const Problem& p) const {
    const int64_t threads = p_.pool == nullptr ? 1 : std::max<int64_t>(1, p_.pool->threads);
    const int64_t tasks = std::max<int64_t>(1, (threads + p.b * p.units - 1) / (p.b * p.units));
    return std::max<int64_t>(16, std::min(kBlock, round_up(ceil_div(p.rows, tasks), 16)));
  }

  // Rows that see no key stay 0: their value bias has a weight of 0 too.
  void find_seen(const Problem& p) {
    seen_.clear();
    for (int64_t b = 0; b < p.b; ++b) {
      for (int64_t h = 0; h < p.h; ++h) {
        for (int64_t s = 0; s < p.s; ++s) seen_.push_back(sees(p, b, h, s));
      }
    }
  }

  static bool sees(const Problem& p, int64_t b, int64_t h, int64_t s) {
    const graft_tensor &bias = p.args.bias, &mask = p.args.key_mask, &past = p.args.past_length;
    int64_t first = 0, end = p.t;
    if (p.args.causal || p.args.window > 0) {
      const int64_t place = s + static_cast<const int64_t*>(past.data)[b * past.strides[0]];
      const int64_t width = p.args.window > 0 ? std::min(p.args.window, kFar) : kFar;
      end = std::min(end, p.args.causal ? place + 1 : place + width);
      first = p.args.window > 0 ? std::max<int64_t>(0, place - width + 1) : 0;
    }
    for (int64_t j = first; j < end; ++j) {
      const char* visible = static_cast<const char*>(mask.data);
      if (visible != nullptr && visible[b * mask.strides[0] + j * mask.strides[1]] == 0) continue;
      const int64_t at = b * bias.strides[0] + h * bias.strides[1] + s * bias.strides[2] + j * bias.strides[3];
      if (bias.data == nullptr || widen1(bias.data, bias.dtype, at) != -INFINITY) return true;
    }
    return false;
  }

  const Expanded& p_;
  const ExpandedKernel& kernel_;
  const Group group_;
  const int64_t rows_;
  std::unique_ptr<float[]> wide_, found_;
  std::vector<int64_t> past_;
  std::vector<uint8_t> seen_;
};

}  // namespace

const char* run_expanded(const Expanded& p, const ExpandedKernel& kernel) {
  for (const Group& group : groups_of(p)) {
    const char* error = Run(p, kernel, group).all();
    if (error != nullptr) return error;
  }
  return nullptr;
}

}  // namespace graft

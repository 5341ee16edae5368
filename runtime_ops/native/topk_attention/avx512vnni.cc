// TopKAttention for AVX-512 with VNNI: top-k only, scored in 8-bit integers first.
#include "../vector/avx512.h"
#include "cut8.h"
#include "list8.h"
#include "run8.h"

namespace graft {
namespace {

struct Avx512Vnni {
  using V = Avx512;
  using ToTile = graft::ToTile;
  using ToBits = graft::ToBits;
  static constexpr bool unsigned_queries = true;

  // Not inlined, because among other code the registers would not do.
  template <class To, bool biased>
  [[gnu::noinline]] static void score(const Search8& s, int64_t first, const Chunk& chunk) {
    score_panel8<biased, To>(s.p, s.keys, first, chunk, 0, s.k.rows, s.x);
  }
  template <class To>
  static void clear_rest(const Search8& s, const Chunk& chunk, int64_t used) {
    graft::clear_rest<To>(chunk, used, s.k.rows, s.x);
  }
  static void cut_places(const Problem& p, Arena* arena, Topk8Scratch* x) { graft::cut_places(p, arena, x); }
  static bool find_tile(const Search8& s, const Chunk& chunk) { return graft::find_tile(s, chunk); }
  static bool list_bits(const Search8& s, const Chunk& chunk) { return graft::list_bits(s, chunk); }
  static void drop_below(int level, Found* f) { graft::drop_below(level, f); }
  static int raise_level(const Found& f, int64_t k, int guess) { return graft::raise_level(f, k, guess); }
  static void drop_impossible(const Keys8& keys, const Row8& row, float wanted, Found* f) {
    graft::drop_impossible(keys, row, wanted, f);
  }
  static void store_sums(const V::F* x, float* to) { _mm256_storeu_ps(to, reduce8(x)); }
  static float cut_exactly(int64_t k, float guess, float step, Candidates* c) {
    return graft::cut_exactly(k, guess, step, c);
  }
};

}  // namespace

const char* topk_attention_avx512vnni(const Problem& p) { return run_kernel8<Avx512Vnni>(p); }

}  // namespace graft

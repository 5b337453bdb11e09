// The MaxSim loops for one instruction set. `maxsim.cpp` includes this once for each,
// with LANES_NAMESPACE and LANES_BYTES (of a register) defined and the set enabled.
//
// 32 query tokens stand in the lanes: 32 int16 are 64 bytes, so a table row is one
// register of AVX-512, two of AVX2, four of SSE2. Everything is integer and, by the
// bounds in shoal/kernels/maxsim.py, never overflows: the order of operations is free.

namespace LANES_NAMESPACE {

// Loads and stores need no alignment, though tables made by `tables` lie on cache lines.
typedef int16_t V16 __attribute__((vector_size(LANES_BYTES), aligned(2), may_alias));
typedef int32_t V32 __attribute__((vector_size(LANES_BYTES), aligned(4), may_alias));

constexpr int kParts16 = 64 / LANES_BYTES, kWidth16 = LANES_BYTES / 2;
constexpr int kParts32 = 128 / LANES_BYTES, kWidth32 = LANES_BYTES / 4;
constexpr int kRows = LANES_BYTES / 16;  // rows at a time, so that accumulators stay in registers

// Sums of products of neighbours: a[2i]·b[2i] + a[2i+1]·b[2i+1].
inline V32 multiply_pairs(V16 a, V16 b) {
#if LANES_BYTES == 64
  return (V32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif LANES_BYTES == 32
  return (V32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (V32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  V32 sums;
  for (int i = 0; i < kWidth32; ++i) sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  return sums;
#endif
}

// (a·b + 2^14) / 2^15, rounded down.
inline V16 scaled(V16 a, V16 b) {
#if LANES_BYTES == 64
  return (V16)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b);
#elif LANES_BYTES == 32
  return (V16)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b);
#else
  V16 products;
  for (int i = 0; i < kWidth16; ++i)
    products[i] = static_cast<int16_t>((int32_t{a[i]} * b[i] + (1 << 14)) >> 15);
  return products;
#endif
}

inline V32 fill(int32_t value) { return V32{} + value; }

// --- tokens as centroid and codes ----------------------------------------------

template <int kCodes>
inline void add_codes(V16* sums, const int16_t* table, const uint8_t* code, int codes) {
  const int count = kCodes < 0 ? codes : kCodes;
#pragma GCC unroll 32
  for (int j = 0; j < count; ++j) {
    const int16_t* row = table + (static_cast<int64_t>(j) * 256 + code[j]) * 32;
    for (int p = 0; p < kParts16; ++p) sums[p] += *(const V16*)(row + p * kWidth16);
  }
}

// A token's similarities: its centroid's and its codes', by its length where that is kept.
template <int kCodes, bool kNorms>
inline void sum_token(const Coded& coded, const int16_t* centroids, const int16_t* table, int64_t t,
                      V16* sums) {
  const int codes = coded.codes_per_token;
  const int16_t* row = centroids + static_cast<int64_t>(coded.ids[t]) * 32;
  for (int p = 0; p < kParts16; ++p) sums[p] = *(const V16*)(row + p * kWidth16);
  add_codes<kCodes>(sums, table, coded.codes + t * codes, codes);
  if (!kNorms) return;
  const V16 factor = V16{} + static_cast<int16_t>(kNormLeast + kNormStep * coded.norms[t]);
  for (int p = 0; p < kParts16; ++p) sums[p] = scaled(sums[p], factor);
}

// Adds to each score what the first `used` lanes of a block give.
template <int kCodes, bool kNorms>
void score_block(const Coded& coded, const int16_t* centroids, const int16_t* table, int used,
                 int64_t* scores) {
  const int codes = coded.codes_per_token;
  for (int64_t n = 0; n < coded.count; ++n) {
    const int64_t begin = coded.offsets[coded.documents[n]];
    const int64_t end = coded.offsets[coded.documents[n] + 1];
    if (n + 1 < coded.count) {
      const int64_t next = coded.offsets[coded.documents[n + 1]];
      __builtin_prefetch(coded.ids + next);
      for (int64_t at = 0; at < 512; at += 64)
        __builtin_prefetch(coded.codes + next * codes + at);
    }
    V16 best[kParts16];
    for (int p = 0; p < kParts16; ++p) best[p] = V16{} + kLowest16;
    for (int64_t t = begin; t < end; ++t) {
      V16 sums[kParts16];
      sum_token<kCodes, kNorms>(coded, centroids, table, t, sums);
      for (int p = 0; p < kParts16; ++p) best[p] = sums[p] > best[p] ? sums[p] : best[p];
    }
    int16_t lanes[32];
    for (int p = 0; p < kParts16; ++p) *(V16*)(lanes + p * kWidth16) = best[p];
    int32_t total = 0;
    for (int lane = 0; lane < used; ++lane) total += lanes[lane];
    scores[n] += total;
  }
}

template <bool kNorms>
void score_with(const Coded& coded, const int16_t* centroids, const int16_t* table, int used,
                int64_t* scores) {
  switch (coded.codes_per_token) {
    case 0: return score_block<0, kNorms>(coded, centroids, table, used, scores);
    case 4: return score_block<4, kNorms>(coded, centroids, table, used, scores);
    case 8: return score_block<8, kNorms>(coded, centroids, table, used, scores);
    case 16: return score_block<16, kNorms>(coded, centroids, table, used, scores);
    case 32: return score_block<32, kNorms>(coded, centroids, table, used, scores);
    default: return score_block<-1, kNorms>(coded, centroids, table, used, scores);
  }
}

void score_coded(const Coded& coded, const int16_t* centroids, const int16_t* table, int used,
                 int64_t* scores) {
  if (coded.norms) return score_with<true>(coded, centroids, table, used, scores);
  score_with<false>(coded, centroids, table, used, scores);
}

// The first best token of document `n` for each lane of a block.
void match_coded(const Coded& coded, const int16_t* centroids, const int16_t* table, int64_t n,
                 int32_t* tokens, int32_t* similarities) {
  const int64_t begin = coded.offsets[coded.documents[n]];
  const int64_t end = coded.offsets[coded.documents[n] + 1];
  for (int lane = 0; lane < 32; ++lane) tokens[lane] = -1, similarities[lane] = kLowest16;
  for (int64_t t = begin; t < end; ++t) {
    V16 sums[kParts16];
    int16_t lanes[32];
    if (coded.norms)
      sum_token<-1, true>(coded, centroids, table, t, sums);
    else
      sum_token<-1, false>(coded, centroids, table, t, sums);
    for (int p = 0; p < kParts16; ++p) *(V16*)(lanes + p * kWidth16) = sums[p];
    for (int lane = 0; lane < 32; ++lane) {
      const bool better = lanes[lane] > similarities[lane];
      similarities[lane] = better ? lanes[lane] : similarities[lane];
      tokens[lane] = better ? static_cast<int32_t>(t - begin) : tokens[lane];
    }
  }
}

// --- integer dot products ------------------------------------------------------

// Gives `sink` the products of `kCount` rows from `first` on with the 32 vectors of a block.
template <int kCount, typename Sink>
inline void dot_some(const int16_t* block, const int16_t* rows, int64_t first, int dim, Sink& sink) {
  V32 sums[kCount][kParts32];
  for (int r = 0; r < kCount; ++r)
    for (int p = 0; p < kParts32; ++p) sums[r][p] = V32{};
  const int16_t* row = rows + first * dim;
  const auto add = [&](const int16_t* pairs, int at, int bytes) {
    for (int r = 0; r < kCount; ++r) {
      int32_t pair = 0;  // the second of a lone last column is 0
      std::memcpy(&pair, row + static_cast<int64_t>(r) * dim + at, bytes);
      for (int p = 0; p < kParts32; ++p)
        sums[r][p] += multiply_pairs(*(const V16*)(pairs + p * kWidth16), (V16)fill(pair));
    }
  };
  int at = 0;
  for (; at + 2 <= dim; at += 2) add(block + at * 32, at, 4);
  if (at < dim) add(block + at * 32, at, 2);
  for (int r = 0; r < kCount; ++r) sink(first + r, sums[r]);
}

template <typename Sink>
inline void dot_rows(const int16_t* block, const int16_t* rows, int64_t count, int dim, Sink& sink) {
  int64_t at = 0;
  for (; at + kRows <= count; at += kRows) dot_some<kRows>(block, rows, at, dim, sink);
  for (; at < count; ++at) dot_some<1>(block, rows, at, dim, sink);
}

// [rows][32]: products · factor / 2^32, rounded half up.
void table_block(const int16_t* block, const int16_t* rows, int64_t count, int dim, int64_t factor,
                 int16_t* out) {
  auto sink = [&](int64_t row, const V32* sums) {
    int32_t lanes[32];
    for (int p = 0; p < kParts32; ++p) *(V32*)(lanes + p * kWidth32) = sums[p];
    for (int lane = 0; lane < 32; ++lane)
      out[row * 32 + lane] =
          static_cast<int16_t>((lanes[lane] * factor + (int64_t{1} << 31)) >> 32);
  };
  dot_rows(block, rows, count, dim, sink);
}

// The greatest product of each lane.
void max_block(const int16_t* block, const int16_t* rows, int64_t count, int dim, int32_t* out) {
  V32 best[kParts32];
  for (int p = 0; p < kParts32; ++p) best[p] = fill(kLowest32);
  auto sink = [&](int64_t, const V32* sums) {
    for (int p = 0; p < kParts32; ++p) best[p] = sums[p] > best[p] ? sums[p] : best[p];
  };
  dot_rows(block, rows, count, dim, sink);
  for (int p = 0; p < kParts32; ++p) *(V32*)(out + p * kWidth32) = best[p];
}

// The first row of each lane with the greatest `factor` · product + bias; no biases are zeros.
void argmax_block(const int16_t* block, const int16_t* rows, int64_t count, int dim, int factor,
                  const int32_t* biases, int32_t* where, int32_t* out) {
  V32 best[kParts32], at[kParts32];
  for (int p = 0; p < kParts32; ++p) best[p] = fill(kLowest32), at[p] = fill(-1);
  auto sink = [&](int64_t row, const V32* sums) {
    for (int p = 0; p < kParts32; ++p) {
      const V32 value = sums[p] * factor + (biases ? biases[row] : 0);
      const V32 better = value > best[p];
      best[p] = better ? value : best[p];
      at[p] = better ? fill(static_cast<int32_t>(row)) : at[p];
    }
  };
  dot_rows(block, rows, count, dim, sink);
  for (int p = 0; p < kParts32; ++p) {
    *(V32*)(out + p * kWidth32) = best[p];
    *(V32*)(where + p * kWidth32) = at[p];
  }
}

// --- the best of a table ---------------------------------------------------------

// How many rows reach a value, in each lane.
inline void count_reached(const int16_t* rows, int64_t count, const V16* value, int32_t* reached) {
  std::memset(reached, 0, 32 * sizeof(int32_t));
  for (int64_t begin = 0; begin < count; begin += 1 << 14) {
    const int64_t end = std::min<int64_t>(count, begin + (1 << 14));
    V16 sums[kParts16];
    for (int p = 0; p < kParts16; ++p) sums[p] = V16{};
    for (int64_t row = begin; row < end; ++row)
      for (int p = 0; p < kParts16; ++p)
        sums[p] -= (V16)(*(const V16*)(rows + row * 32 + p * kWidth16) >= value[p]);
    int16_t lanes[32];
    for (int p = 0; p < kParts16; ++p) *(V16*)(lanes + p * kWidth16) = sums[p];
    for (int lane = 0; lane < 32; ++lane) reached[lane] += lanes[lane];
  }
}

// Rows whose values below the `kept`-th greatest of their lane are raised to it.
void floor_block(const int16_t* rows, int64_t count, int64_t kept, int16_t* out) {
  // The greatest value that `kept` rows reach, bit by bit from the top.
  int16_t least[32];
  for (int lane = 0; lane < 32; ++lane) least[lane] = kLowest16;
  for (int bit = 15; bit >= 0; --bit) {
    int16_t tried[32];
    for (int lane = 0; lane < 32; ++lane)
      tried[lane] = static_cast<int16_t>(least[lane] + (1 << bit));
    V16 value[kParts16];
    for (int p = 0; p < kParts16; ++p) value[p] = *(const V16*)(tried + p * kWidth16);
    int32_t reached[32];
    count_reached(rows, count, value, reached);
    for (int lane = 0; lane < 32; ++lane)
      if (reached[lane] >= kept) least[lane] = tried[lane];
  }
  V16 floor[kParts16];
  for (int p = 0; p < kParts16; ++p) floor[p] = *(const V16*)(least + p * kWidth16);
  for (int64_t row = 0; row < count; ++row)
    for (int p = 0; p < kParts16; ++p) {
      const V16 value = *(const V16*)(rows + row * 32 + p * kWidth16);
      *(V16*)(out + row * 32 + p * kWidth16) = value > floor[p] ? value : floor[p];
    }
}

constexpr Loops kLoops{score_coded, match_coded,  table_block,
                       max_block,   argmax_block, floor_block};

}  // namespace LANES_NAMESPACE

#undef LANES_NAMESPACE
#undef LANES_BYTES

#include "maxsim.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace shoal {
namespace {

// Registers of each instruction set; as many as hold 32 lanes. Wider ones than it has are slow.
using Register16 = int16_t __attribute__((vector_size(16)));
using Register32 = int16_t __attribute__((vector_size(32)));
using Register64 = int16_t __attribute__((vector_size(64)));

#define INLINE __attribute__((always_inline))

template <typename Register>
struct Lanes {
  static constexpr int kParts = 2 * kLanes / sizeof(Register);
  Register parts[kParts];

  INLINE inline void load(const int16_t* from) { std::memcpy(parts, from, sizeof parts); }
  INLINE inline void add(const int16_t* from) {
    for (int i = 0; i < kParts; ++i) {
      Register entry;
      std::memcpy(&entry, from + i * (kLanes / kParts), sizeof entry);
      parts[i] += entry;
    }
  }
  INLINE inline void keep_larger(const Lanes& other) {
    for (int i = 0; i < kParts; ++i)
      parts[i] = other.parts[i] > parts[i] ? other.parts[i] : parts[i];
  }
};

// One token's similarities to 32 query tokens.
template <typename Register>
INLINE inline Lanes<Register> similarities(const int16_t* centroids, const int16_t* residuals,
                                    uint32_t centroid, const uint8_t* words, int64_t subspaces) {
  Lanes<Register> sum;
  sum.load(centroids + int64_t{centroid} * kLanes);
  for (int64_t j = 0; j < subspaces; ++j)
    sum.add(residuals + (j * kWords + words[j]) * kLanes);
  return sum;
}

// One document: per query token the best of all its tokens, summed over query tokens. Sums of
// 16-bit entries cannot overflow: see `maxsim` in __init__.py.
template <typename Register>
INLINE inline int64_t score(const QueryTables& query, const TokenCodes& codes, int64_t document) {
  const int64_t first = codes.starts[document], last = codes.starts[document + 1];
  if (first == last) return std::numeric_limits<int64_t>::min();
  int64_t total = 0;
  for (int64_t block = 0; block < query.blocks; ++block) {
    const int16_t* centroids = query.centroids + block * query.centroid_count * kLanes;
    const int16_t* residuals = query.residuals + block * query.subspaces * kWords * kLanes;
    const auto of = [&](int64_t token) INLINE {
      return similarities<Register>(centroids, residuals, codes.centroids[token],
                                    codes.words + token * query.subspaces, query.subspaces);
    };
    Lanes<Register> best = of(first);
    for (int64_t token = first + 1; token < last; ++token) best.keep_larger(of(token));
    int16_t lanes[kLanes];
    std::memcpy(lanes, best.parts, sizeof lanes);
    const int64_t used = std::min<int64_t>(kLanes, query.tokens - block * kLanes);
    for (int64_t lane = 0; lane < used; ++lane) total += lanes[lane];
  }
  return total;
}

template <typename Register>
INLINE inline void scores_of(const QueryTables& query, const TokenCodes& codes, const int64_t* documents,
                      int64_t count, int64_t* scores) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) {
      const int64_t next = codes.starts[documents[i + 1]];
      __builtin_prefetch(codes.centroids + next);
      __builtin_prefetch(codes.words + next * query.subspaces);
    }
    scores[i] = score<Register>(query, codes, documents[i]);
  }
}

void baseline(const QueryTables& query, const TokenCodes& codes, const int64_t* documents,
              int64_t count, int64_t* scores) {
  scores_of<Register16>(query, codes, documents, count, scores);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void avx2(const QueryTables& query, const TokenCodes& codes,
                                          const int64_t* documents, int64_t count,
                                          int64_t* scores) {
  scores_of<Register32>(query, codes, documents, count, scores);
}

__attribute__((target("avx512bw,avx512vl,prefer-vector-width=512"))) void avx512(
    const QueryTables& query, const TokenCodes& codes, const int64_t* documents, int64_t count,
    int64_t* scores) {
  scores_of<Register64>(query, codes, documents, count, scores);
}
#endif

}  // namespace

std::vector<std::string> maxsim_paths() {
  std::vector<std::string> paths;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    paths.push_back("avx512");
  if (__builtin_cpu_supports("avx2")) paths.push_back("avx2");
#endif
  paths.push_back("baseline");
  return paths;
}

void maxsim(const std::string& path, const QueryTables& query, const TokenCodes& codes,
            const int64_t* documents, int64_t count, int64_t* scores) {
  const auto paths = maxsim_paths();
  if (std::find(paths.begin(), paths.end(), path) == paths.end())
    throw std::invalid_argument("this processor has no path " + path);
#if defined(__x86_64__)
  if (path == "avx512") return avx512(query, codes, documents, count, scores);
  if (path == "avx2") return avx2(query, codes, documents, count, scores);
#endif
  baseline(query, codes, documents, count, scores);
}

}  // namespace shoal

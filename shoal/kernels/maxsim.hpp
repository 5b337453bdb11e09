// MaxSim over product-quantised tokens, in integers: every path gives the same bits.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal {

constexpr int kLanes = 32;
constexpr int kWords = 256;

// A query's tables: query tokens lie in the lanes, in blocks of 32.
struct QueryTables {
  const int16_t* centroids;  // [blocks][centroid_count][32]
  const int16_t* residuals;  // [blocks][subspaces][256][32]
  int64_t blocks, centroid_count, subspaces, tokens;
};

// Documents as contiguous runs of tokens.
struct TokenCodes {
  const uint32_t* centroids;  // [tokens]
  const uint8_t* words;       // [tokens][subspaces]
  const int64_t* starts;      // [documents + 1]
};

// Instruction sets that this processor has, fastest first; "baseline" is always last.
std::vector<std::string> maxsim_paths();

// Scores of some documents; `path` is one of `maxsim_paths`. A document without tokens
// scores the least int64.
void maxsim(const std::string& path, const QueryTables& query, const TokenCodes& codes,
            const int64_t* documents, int64_t count, int64_t* scores);

}  // namespace shoal

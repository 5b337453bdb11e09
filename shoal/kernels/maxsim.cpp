// The compiled twins of `shoal.kernels.portable_maxsim`: the same integers.

#include "maxsim.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE_PATHS 1  // clang has no #pragma GCC target
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace py = pybind11;

namespace {

constexpr int16_t kLowest16 = std::numeric_limits<int16_t>::min();
constexpr int32_t kLowest32 = std::numeric_limits<int32_t>::min();
constexpr int kLanes = 32;
constexpr int64_t kLine = 64;
constexpr int kNormLeast = 12288, kNormStep = 80;  // as in shoal/kernels/token_runs.py

// Documents as runs of coded tokens, and which of them are asked for.
struct Coded {
  const uint16_t* ids;
  const uint8_t* codes;
  int codes_per_token;
  const int64_t *offsets, *documents;
  int64_t count;
  const uint8_t* norms;  // null where tokens are not scaled
};

// The loops of one instruction set.
struct Loops {
  void (*score_coded)(const Coded&, const int16_t*, const int16_t*, int, int64_t*);
  void (*match_coded)(const Coded&, const int16_t*, const int16_t*, int64_t, int32_t*, int32_t*);
  void (*table_block)(const int16_t*, const int16_t*, int64_t, int, int64_t, int16_t*);
  void (*max_block)(const int16_t*, const int16_t*, int64_t, int, int32_t*);
  void (*argmax_block)(const int16_t*, const int16_t*, int64_t, int, int, const int32_t*, int32_t*,
                       int32_t*);
  void (*floor_block)(const int16_t*, int64_t, int64_t, int16_t*);
};

#define LANES_NAMESPACE baseline
#define LANES_BYTES 16
#include "maxsim_lanes.h"

#ifdef WIDE_PATHS
#pragma GCC push_options
#pragma GCC target("avx2")
#define LANES_NAMESPACE avx2
#define LANES_BYTES 32
#include "maxsim_lanes.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#define LANES_NAMESPACE avx512
#define LANES_BYTES 64
#include "maxsim_lanes.h"
#pragma GCC pop_options
#endif

struct Path {
  const char* name;
  bool supported;
  const Loops* loops;
};

// Fastest first.
std::vector<Path> paths() {
#ifdef WIDE_PATHS
  return {{"avx512",
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq"),
           &avx512::kLoops},
          {"avx2", static_cast<bool>(__builtin_cpu_supports("avx2")), &avx2::kLoops},
          {"baseline", true, &baseline::kLoops}};
#else
  return {{"baseline", true, &baseline::kLoops}};
#endif
}

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void check(bool fits, const char* message) {
  if (!fits) throw py::value_error(message);
}

const Loops& loops_of(const std::string& name) {
  for (const Path& path : paths())
    if (path.supported && name == path.name) return *path.loops;
  throw py::value_error("this processor has no path " + name);
}

// --- blocks of 32 vectors ------------------------------------------------------

int64_t blocks_of(int64_t count) { return (count + kLanes - 1) / kLanes; }

int lanes_of(int64_t count, int64_t block) {
  return static_cast<int>(std::min<int64_t>(kLanes, count - block * kLanes));
}

// int16 on a cache line; zero where nothing was written.
class Aligned {
 public:
  explicit Aligned(int64_t count)
      : data_(static_cast<int16_t*>(::operator new(count * 2 + kLine, std::align_val_t{kLine}))) {
    std::memset(data_, 0, count * 2 + kLine);
  }
  ~Aligned() { ::operator delete(data_, std::align_val_t{kLine}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  int16_t* data() { return data_; }

 private:
  int16_t* data_;
};

// Vectors in lanes: [pairs of columns][32 lanes][2], missing lanes and columns zero.
struct Packed {
  Packed(const int16_t* vectors, int64_t count, int64_t stride, int dim)
      : size(int64_t{(dim + 1) / 2} * 2 * kLanes), values(blocks_of(count) * size) {
    for (int64_t i = 0; i < count; ++i)
      for (int j = 0; j < dim; ++j)
        values.data()[(i / kLanes) * size + (j / 2) * 2 * kLanes + (i % kLanes) * 2 + j % 2] =
            vectors[i * stride + j];
  }
  const int16_t* block(int64_t number) { return values.data() + number * size; }

  int64_t size;
  Aligned values;
};

// Rows by group, which stand for the columns of a vector one group after the other.
struct Groups {
  Groups(const Array<int16_t>& vectors, const Array<int16_t>& rows) {
    check(vectors.ndim() == 2 && rows.ndim() == 3, "vectors are [n, dim], rows [groups, n, part]");
    groups = rows.shape(0), count = rows.shape(1), dim = static_cast<int>(rows.shape(2));
    check(groups * dim == vectors.shape(1) && dim > 0, "vectors and rows of different widths");
  }
  int64_t groups, count;
  int dim;
};

py::array tables(const Array<int16_t>& vectors, const Array<int16_t>& rows, int64_t factor,
                 const std::string& path) {
  const Loops& loops = loops_of(path);
  const Groups shape(vectors, rows);
  const int64_t count = vectors.shape(0), stride = vectors.shape(1), blocks = blocks_of(count);
  const int64_t size = shape.count * kLanes;
  auto* out = new Aligned(blocks * shape.groups * size);
  const py::capsule owner(out, [](void* made) { delete static_cast<Aligned*>(made); });
  const int16_t *data = vectors.data(), *all = rows.data();
  {
    py::gil_scoped_release release;
    for (int64_t g = 0; g < shape.groups; ++g) {
      Packed packed(data + g * shape.dim, count, stride, shape.dim);
      for (int64_t b = 0; b < blocks; ++b)
        loops.table_block(packed.block(b), all + g * shape.count * shape.dim, shape.count,
                          shape.dim, factor, out->data() + (b * shape.groups + g) * size);
    }
  }
  return Array<int16_t>({blocks, shape.groups, shape.count, int64_t{kLanes}}, out->data(), owner);
}

py::array floored(const Array<int16_t>& table, int64_t kept, const std::string& path) {
  const Loops& loops = loops_of(path);
  check(table.ndim() == 4 && table.shape(3) == kLanes, "a table is [blocks, groups, rows, 32]");
  const int64_t blocks = table.shape(0), groups = table.shape(1), count = table.shape(2);
  check(0 < kept && kept <= count, "between 1 and all rows are kept");
  auto* out = new Aligned(table.size());
  const py::capsule owner(out, [](void* made) { delete static_cast<Aligned*>(made); });
  const int16_t* data = table.data();
  {
    py::gil_scoped_release release;
    for (int64_t b = 0; b < blocks * groups; ++b)
      loops.floor_block(data + b * count * kLanes, count, kept, out->data() + b * count * kLanes);
  }
  return Array<int16_t>({blocks, groups, count, int64_t{kLanes}}, out->data(), owner);
}

py::array nearest(const Array<int16_t>& vectors, const Array<int16_t>& rows,
                  const std::string& path) {
  const Loops& loops = loops_of(path);
  const Groups shape(vectors, rows);
  check(0 < shape.count && shape.count <= 1 << 16, "between 1 and 65,536 rows");
  const int64_t count = vectors.shape(0), stride = vectors.shape(1);
  Array<uint16_t> found({count, shape.groups});
  uint16_t* out = found.mutable_data();
  const int16_t *data = vectors.data(), *all = rows.data();
  py::gil_scoped_release release;
  for (int64_t g = 0; g < shape.groups; ++g) {
    const int16_t* group = all + g * shape.count * shape.dim;
    std::vector<int32_t> biases(shape.count, 0);
    for (int64_t i = 0; i < shape.count * shape.dim; ++i)
      biases[i / shape.dim] -= group[i] * group[i];
    // A block at a time: the packed copy of all vectors would be as large as they are.
    for (int64_t b = 0; b < blocks_of(count); ++b) {
      const int used = lanes_of(count, b);
      Packed packed(data + b * kLanes * stride + g * shape.dim, used, stride, shape.dim);
      int32_t where[kLanes], values[kLanes];
      loops.argmax_block(packed.block(0), group, shape.count, shape.dim, 2, biases.data(), where,
                         values);
      for (int lane = 0; lane < used; ++lane)
        out[(b * kLanes + lane) * shape.groups + g] = static_cast<uint16_t>(where[lane]);
    }
  }
  return found;
}

// --- documents -----------------------------------------------------------------

void check_documents(const Array<int64_t>& offsets, const Array<int64_t>& documents,
                     int64_t tokens) {
  const int64_t* at = offsets.data();
  const int64_t known = offsets.size() - 1;
  for (int64_t n = 0; n < documents.size(); ++n) {
    const int64_t number = documents.data()[n];
    check(0 <= number && number < known, "there is no document of this number");
    check(0 <= at[number] && at[number] <= at[number + 1] && at[number + 1] <= tokens,
          "a document lies outside the tokens");
  }
}

// Tables with the documents that they score.
struct CodedCall {
  CodedCall(const Array<int16_t>& centroids, const Array<int16_t>& words,
            const Array<uint16_t>& ids, const Array<uint8_t>& codes,
            const Array<int64_t>& offsets, const Array<int64_t>& documents, int64_t queries,
            const std::optional<Array<uint8_t>>& norms)
      : queries(queries), centroids(centroids.data()), words(words.data()) {
    check(centroids.ndim() == 4 && words.ndim() == 4 && codes.ndim() == 2,
          "tables are [blocks, groups, rows, 32], codes [tokens, groups]");
    check(centroids.shape(0) == blocks_of(queries) && centroids.shape(1) == 1 &&
              centroids.shape(3) == kLanes && words.shape(0) == blocks_of(queries) &&
              words.shape(1) == codes.shape(1) && words.shape(2) == 256 &&
              words.shape(3) == kLanes && codes.shape(0) == ids.size(),
          "tables, codes and ids of different shapes");
    check_documents(offsets, documents, ids.size());
    check(!norms || norms->size() == ids.size(), "norms and ids of different lengths");
    coded = {ids.data(),     codes.data(),     static_cast<int>(codes.shape(1)),
             offsets.data(), documents.data(), documents.size(),
             norms ? norms->data() : nullptr};
    centroids_size = centroids.shape(2) * kLanes;
    words_size = words.shape(1) * 256 * kLanes;
  }
  int64_t queries, centroids_size, words_size;
  const int16_t *centroids, *words;
  Coded coded;
};

Array<int64_t> score_coded(const Array<int16_t>& centroids, const Array<int16_t>& words,
                           const Array<uint16_t>& ids, const Array<uint8_t>& codes,
                           const Array<int64_t>& offsets, const Array<int64_t>& documents,
                           int64_t queries, const std::string& path,
                           const std::optional<Array<uint8_t>>& norms) {
  const Loops& loops = loops_of(path);
  const CodedCall call(centroids, words, ids, codes, offsets, documents, queries, norms);
  Array<int64_t> scores(call.coded.count);
  int64_t* out = scores.mutable_data();
  py::gil_scoped_release release;
  std::fill(out, out + call.coded.count, 0);
  // Blocks outside: the tables of one block stay in the cache for all documents.
  for (int64_t b = 0; b < blocks_of(queries); ++b)
    loops.score_coded(call.coded, call.centroids + b * call.centroids_size,
                      call.words + b * call.words_size, lanes_of(queries, b), out);
  return scores;
}

// What `visit(document, block, tokens, similarities)` finds, as two [documents, queries].
template <typename Visit>
py::tuple matches(int64_t count, int64_t queries, Visit visit) {
  Array<int32_t> tokens({count, queries}), similarities({count, queries});
  int32_t *tokens_out = tokens.mutable_data(), *similarities_out = similarities.mutable_data();
  {
    py::gil_scoped_release release;
    for (int64_t n = 0; n < count; ++n)
      for (int64_t b = 0; b < blocks_of(queries); ++b) {
        int32_t where[kLanes], values[kLanes];
        visit(n, b, where, values);
        const int64_t at = n * queries + b * kLanes;
        std::copy(where, where + lanes_of(queries, b), tokens_out + at);
        std::copy(values, values + lanes_of(queries, b), similarities_out + at);
      }
  }
  return py::make_tuple(tokens, similarities);
}

py::tuple match_coded(const Array<int16_t>& centroids, const Array<int16_t>& words,
                      const Array<uint16_t>& ids, const Array<uint8_t>& codes,
                      const Array<int64_t>& offsets, const Array<int64_t>& documents,
                      int64_t queries, const std::string& path,
                      const std::optional<Array<uint8_t>>& norms) {
  const Loops& loops = loops_of(path);
  const CodedCall call(centroids, words, ids, codes, offsets, documents, queries, norms);
  return matches(call.coded.count, queries,
                 [&](int64_t n, int64_t b, int32_t* tokens, int32_t* similarities) {
                   loops.match_coded(call.coded, call.centroids + b * call.centroids_size,
                                     call.words + b * call.words_size, n, tokens, similarities);
                 });
}

int dim_of(const Array<int16_t>& queries, const Array<int16_t>& rows) {
  check(queries.ndim() == 2 && rows.ndim() == 2 && queries.shape(1) == rows.shape(1) &&
            rows.shape(1) > 0,
        "queries and rows are matrices of the same width");
  return static_cast<int>(rows.shape(1));
}

Array<int64_t> score_rows(const Array<int16_t>& queries, const Array<int16_t>& rows,
                          const Array<int64_t>& offsets, const Array<int64_t>& documents,
                          const std::string& path) {
  const Loops& loops = loops_of(path);
  const int dim = dim_of(queries, rows);
  check_documents(offsets, documents, rows.shape(0));
  const int64_t count = queries.shape(0), wanted = documents.size();
  const int16_t *query_data = queries.data(), *data = rows.data();
  const int64_t *at = offsets.data(), *numbers = documents.data();
  Array<int64_t> scores(wanted);
  int64_t* out = scores.mutable_data();
  py::gil_scoped_release release;
  Packed packed(query_data, count, dim, dim);
  std::fill(out, out + wanted, 0);
  for (int64_t n = 0; n < wanted; ++n) {
    const int64_t begin = at[numbers[n]], end = at[numbers[n] + 1];
    for (int64_t b = 0; b < blocks_of(count); ++b) {
      int32_t best[kLanes];
      loops.max_block(packed.block(b), data + begin * dim, end - begin, dim, best);
      for (int lane = 0; lane < lanes_of(count, b); ++lane) out[n] += best[lane];
    }
  }
  return scores;
}

py::tuple match_rows(const Array<int16_t>& queries, const Array<int16_t>& rows,
                     const Array<int64_t>& offsets, const Array<int64_t>& documents,
                     const std::string& path) {
  const Loops& loops = loops_of(path);
  const int dim = dim_of(queries, rows);
  check_documents(offsets, documents, rows.shape(0));
  const int16_t* data = rows.data();
  const int64_t *at = offsets.data(), *numbers = documents.data();
  Packed packed(queries.data(), queries.shape(0), dim, dim);
  return matches(documents.size(), queries.shape(0),
                 [&](int64_t n, int64_t b, int32_t* tokens, int32_t* similarities) {
                   const int64_t begin = at[numbers[n]], end = at[numbers[n] + 1];
                   loops.argmax_block(packed.block(b), data + begin * dim, end - begin, dim, 1,
                                      nullptr, tokens, similarities);
                 });
}

py::tuple supported_paths() {
  py::list names;
  for (const Path& path : paths())
    if (path.supported) names.append(path.name);
  return py::tuple(names);
}

}  // namespace

void bind_maxsim(py::module_& module) {
  module.def("maxsim_paths", &supported_paths);
  module.def("tables", &tables, py::arg("vectors").noconvert(), py::arg("rows").noconvert(),
             py::arg("factor"), py::arg("path"));
  module.def("floored", &floored, py::arg("table").noconvert(), py::arg("kept"), py::arg("path"));
  module.def("nearest", &nearest, py::arg("vectors").noconvert(), py::arg("rows").noconvert(),
             py::arg("path"));
  module.def("score_coded", &score_coded, py::arg("centroids").noconvert(),
             py::arg("words").noconvert(), py::arg("ids").noconvert(),
             py::arg("codes").noconvert(), py::arg("offsets").noconvert(),
             py::arg("documents").noconvert(), py::arg("queries"), py::arg("path"),
             py::arg("norms").noconvert());
  module.def("match_coded", &match_coded, py::arg("centroids").noconvert(),
             py::arg("words").noconvert(), py::arg("ids").noconvert(),
             py::arg("codes").noconvert(), py::arg("offsets").noconvert(),
             py::arg("documents").noconvert(), py::arg("queries"), py::arg("path"),
             py::arg("norms").noconvert());
  module.def("score_rows", &score_rows, py::arg("queries").noconvert(),
             py::arg("rows").noconvert(), py::arg("offsets").noconvert(),
             py::arg("documents").noconvert(), py::arg("path"));
  module.def("match_rows", &match_rows, py::arg("queries").noconvert(),
             py::arg("rows").noconvert(), py::arg("offsets").noconvert(),
             py::arg("documents").noconvert(), py::arg("path"));
}

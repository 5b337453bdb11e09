// The compiled twins of `shoal.kernels.portable`: the same answers, the same bits.
//
// Integer and float64 arithmetic in a stated order, no fused multiply-add
// (-ffp-contract=off): every instruction set gives the same bits, and the
// fastest that the processor has is chosen when the module is loaded.

#include "maxsim.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#define WIDEST __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define WIDEST
#endif

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

enum Similarity { kCosine, kDot, kL2 };

void check(bool fits, const char* message) {
  if (!fits) throw py::value_error(message);
}

template <typename T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// --- exact scores --------------------------------------------------------------

// The smallest power of two that is at least half of `dim`, the first step of the fold.
int64_t first_half(int64_t dim) {
  int64_t half = 1;
  while (2 * half < dim) half *= 2;
  return half;
}

// fold(q·x), or fold((q - x)²), of one query with many rows. See `exact.scores`.
WIDEST void fold_rows(bool squared_difference, const double* __restrict query,
                      const float* __restrict vectors, const int64_t* rows, int64_t count,
                      int64_t dim, double* __restrict terms, double* __restrict folded) {
  const int64_t half = first_half(dim), paired = std::max<int64_t>(0, dim - half);
  const int64_t whole = std::min(half, dim);
  for (int64_t i = 0; i < count; ++i) {
    const float* __restrict row = vectors + rows[i] * dim;
    if (i + 1 < count) {
      const char* next = reinterpret_cast<const char*>(vectors + rows[i + 1] * dim);
      for (int64_t at = 0; at < dim * 4; at += 64) __builtin_prefetch(next + at);
    }
    if (squared_difference) {
      for (int64_t j = 0; j < paired; ++j) {
        const double low = query[j] - row[j], high = query[j + half] - row[j + half];
        terms[j] = low * low + high * high;
      }
      for (int64_t j = paired; j < whole; ++j) {
        const double low = query[j] - row[j];
        terms[j] = low * low;
      }
    } else {
      for (int64_t j = 0; j < paired; ++j)
        terms[j] = query[j] * row[j] + query[j + half] * row[j + half];
      for (int64_t j = paired; j < whole; ++j) terms[j] = query[j] * row[j];
    }
    for (int64_t width = half / 2; width > 0; width /= 2)
      for (int64_t j = 0; j < width; ++j) terms[j] += terms[j + width];
    folded[i] = terms[0];
  }
}

Array<double> squares(const Array<float>& vectors) {
  check(vectors.ndim() == 2, "vectors are a matrix");
  const int64_t count = vectors.shape(0), dim = vectors.shape(1);
  Array<double> folded(count);
  const float* data = vectors.data();
  double* out = folded.mutable_data();
  py::gil_scoped_release release;
  std::vector<double> query(dim), terms(first_half(dim) + dim);
  for (int64_t i = 0; i < count; ++i) {
    std::copy(data + i * dim, data + (i + 1) * dim, query.begin());
    fold_rows(false, query.data(), data, &i, 1, dim, terms.data(), out + i);
    out[i] += 0.0;
  }
  return folded;
}

// --- hits as columns -----------------------------------------------------------

struct Columns {
  std::vector<int64_t> counts;
  std::string ids;
  std::vector<uint32_t> id_lengths;
  std::vector<double> scores;
  std::vector<uint64_t> sequences;
  std::vector<uint32_t> passages;

  void add(std::string_view id, double score, uint64_t sequence, uint32_t passage) {
    ids.append(id);
    id_lengths.push_back(static_cast<uint32_t>(id.size()));
    scores.push_back(score);
    sequences.push_back(sequence);
    passages.push_back(passage);
  }

  py::tuple tuple() const {
    return py::make_tuple(array_of(counts), py::bytes(ids), array_of(id_lengths),
                          array_of(scores), array_of(sequences), array_of(passages));
  }
};

// Best first: a higher score, then the lesser id by bytes.
bool before(double score, std::string_view id, double other_score, std::string_view other_id) {
  return score != other_score ? score > other_score : id < other_id;
}

// --- ranking one source --------------------------------------------------------

struct Table {
  const float* vectors;
  const double* squares;
  const int32_t* row_documents;
  const int64_t* row_starts;
  const char* ids;
  const int64_t* id_starts;
  const uint64_t* sequences;
  const uint8_t* live;  // null: every row is

  bool alive(int64_t row) const { return !live || (live[row >> 3] >> (row & 7)) & 1; }
  std::string_view id(int64_t document) const {
    return {ids + id_starts[document],
            static_cast<size_t>(id_starts[document + 1] - id_starts[document])};
  }
};

struct Candidate {
  double score;
  int64_t document, row;
};

// Keeps each document's best row, the first of equals.
void fold_documents(std::vector<Candidate>& found) {
  std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
    if (a.document != b.document) return a.document < b.document;
    return a.score != b.score ? a.score > b.score : a.row < b.row;
  });
  found.erase(std::unique(found.begin(), found.end(),
                          [](const Candidate& a, const Candidate& b) {
                            return a.document == b.document;
                          }),
              found.end());
}

py::tuple rank(int similarity, const Array<float>& queries, const Array<double>& query_squares,
               const Array<int64_t>& proposals, const Array<int64_t>& top_k,
               const Array<float>& vectors, const Array<double>& row_squares,
               const Array<int32_t>& row_documents, const Array<int64_t>& row_starts,
               const Array<uint8_t>& ids, const Array<int64_t>& id_starts,
               const Array<uint64_t>& sequences, const py::object& live) {
  check(queries.ndim() == 2 && vectors.ndim() == 2 && proposals.ndim() == 2,
        "queries, vectors and proposals are matrices");
  const int64_t count = queries.shape(0), dim = queries.shape(1), rows = vectors.shape(0);
  const int64_t width = proposals.shape(1), documents = sequences.size();
  check(vectors.shape(1) == dim && proposals.shape(0) == count && query_squares.size() == count &&
            top_k.size() == count && row_squares.size() == rows && row_documents.size() == rows &&
            row_starts.size() == documents + 1 && id_starts.size() == documents + 1,
        "columns of different lengths");
  Array<uint8_t> bits;
  if (!live.is_none()) {
    bits = live.cast<Array<uint8_t>>();
    check(bits.size() * 8 >= rows, "fewer bits than rows");
  }
  const Table table{vectors.data(),
                    row_squares.data(),
                    row_documents.data(),
                    row_starts.data(),
                    reinterpret_cast<const char*>(ids.data()),
                    id_starts.data(),
                    sequences.data(),
                    live.is_none() ? nullptr : bits.data()};
  const float* query_data = queries.data();
  const double* norms = query_squares.data();
  const int64_t *proposed = proposals.data(), *wanted = top_k.data();
  for (int64_t i = 0; i < count * width; ++i)
    check(proposed[i] < rows, "a proposal is beyond the last row");
  Columns hits;
  {
    py::gil_scoped_release release;
    std::vector<double> query(dim), terms(first_half(dim) + dim), folded(width);
    std::vector<int64_t> chosen;
    std::vector<Candidate> found;
    for (int64_t i = 0; i < count; ++i) {
      std::copy(query_data + i * dim, query_data + (i + 1) * dim, query.begin());
      chosen.clear();
      for (int64_t j = 0; j < width; ++j) {
        const int64_t row = proposed[i * width + j];
        if (row >= 0 && table.alive(row)) chosen.push_back(row);
      }
      fold_rows(similarity == kL2, query.data(), table.vectors, chosen.data(),
                static_cast<int64_t>(chosen.size()), dim, terms.data(), folded.data());
      found.clear();
      for (size_t j = 0; j < chosen.size(); ++j) {
        double score = similarity == kL2 ? -folded[j] : folded[j];
        if (similarity == kCosine) score /= std::sqrt(norms[i] * table.squares[chosen[j]]);
        // Adding 0 makes -0, which would be another bit pattern, +0.
        found.push_back({score + 0.0, table.row_documents[chosen[j]], chosen[j]});
      }
      if (documents < rows) fold_documents(found);
      const size_t kept = std::min<size_t>(found.size(), static_cast<size_t>(wanted[i]));
      std::partial_sort(found.begin(), found.begin() + static_cast<int64_t>(kept), found.end(),
                        [&](const Candidate& a, const Candidate& b) {
                          return before(a.score, table.id(a.document), b.score,
                                        table.id(b.document));
                        });
      hits.counts.push_back(static_cast<int64_t>(kept));
      for (size_t j = 0; j < kept; ++j) {
        const Candidate& one = found[j];
        hits.add(table.id(one.document), one.score, table.sequences[one.document],
                 static_cast<uint32_t>(one.row - table.row_starts[one.document]));
      }
    }
  }
  return hits.tuple();
}

// --- merging lists -------------------------------------------------------------

struct List {
  std::vector<py::object> owners;
  int64_t number;
  const int64_t *rows, *counts;
  int64_t queries, hits;
  const char* ids;
  const uint32_t* id_lengths;
  const double* scores;
  const uint64_t* sequences;
  const uint32_t* passages;
};

struct Entry {
  double score;
  std::string_view id;
  const List* list;
  int64_t at;
};

// part: (number, rows, counts, ids, id_lengths, scores, sequences, passages)
List list_of(const py::tuple& part) {
  List list{};
  list.number = part[0].cast<int64_t>();
  const auto rows = part[1].cast<Array<int64_t>>(), counts = part[2].cast<Array<int64_t>>();
  const auto ids = part[3].cast<std::string_view>();
  const auto lengths = part[4].cast<Array<uint32_t>>(), passages = part[7].cast<Array<uint32_t>>();
  const auto scores = part[5].cast<Array<double>>();
  const auto sequences = part[6].cast<Array<uint64_t>>();
  list.rows = rows.data(), list.counts = counts.data(), list.queries = counts.size();
  list.ids = ids.data(), list.id_lengths = lengths.data(), list.scores = scores.data();
  list.sequences = sequences.data(), list.passages = passages.data(), list.hits = scores.size();
  list.owners = {rows, counts, part[3], lengths, passages, scores, sequences};
  int64_t hits = 0;
  size_t bytes = 0;
  for (int64_t i = 0; i < list.queries; ++i) hits += list.counts[i];
  check(rows.size() == list.queries && hits == list.hits && lengths.size() == hits &&
            sequences.size() == hits && passages.size() == hits,
        "columns of different lengths");
  for (int64_t i = 0; i < hits; ++i) bytes += list.id_lengths[i];
  check(bytes == ids.size(), "ids of another length");
  return list;
}

py::tuple merge(const py::list& parts, const Array<int64_t>& top_k) {
  const int64_t count = top_k.size();
  const int64_t* wanted = top_k.data();
  std::vector<List> lists;
  for (const py::handle& part : parts) lists.push_back(list_of(part.cast<py::tuple>()));
  std::vector<std::vector<Entry>> found(count);
  Columns hits;
  std::vector<int64_t> numbers;
  {
    py::gil_scoped_release release;
    for (const List& list : lists) {
      int64_t at = 0;
      const char* id = list.ids;
      for (int64_t i = 0; i < list.queries; ++i) {
        const bool wants = list.rows[i] >= 0 && list.rows[i] < count;
        for (const int64_t end = at + list.counts[i]; at < end; id += list.id_lengths[at], ++at)
          if (wants)
            found[list.rows[i]].push_back(
                {list.scores[at], {id, list.id_lengths[at]}, &list, at});
      }
    }
    std::unordered_set<std::string_view> seen;
    for (int64_t i = 0; i < count; ++i) {
      std::stable_sort(found[i].begin(), found[i].end(), [](const Entry& a, const Entry& b) {
        return before(a.score, a.id, b.score, b.id);
      });
      seen.clear();
      int64_t kept = 0;
      for (const Entry& one : found[i]) {
        if (kept == wanted[i]) break;
        if (!seen.insert(one.id).second) continue;
        const List& list = *one.list;
        hits.add(one.id, one.score, list.sequences[one.at], list.passages[one.at]);
        numbers.push_back(list.number);
        ++kept;
      }
      hits.counts.push_back(kept);
    }
  }
  return py::make_tuple(hits.tuple(), array_of(numbers));
}

// --- hits as protobuf ----------------------------------------------------------

void put_varint(std::string& out, uint64_t value) {
  for (; value > 0x7F; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

py::list encode(const Array<int64_t>& counts, const py::bytes& ids, const Array<uint32_t>& id_lengths,
                const Array<double>& scores, const Array<uint32_t>& passages,
                const Array<int64_t>& numbers, int field) {
  const int64_t hits = scores.size();
  check(id_lengths.size() == hits && passages.size() == hits && numbers.size() == hits,
        "columns of different lengths");
  const auto bytes = static_cast<std::string_view>(ids);
  size_t at = 0;
  int64_t hit = 0;
  std::string out, body;
  py::list encoded;
  for (int64_t i = 0; i < counts.size(); ++i) {
    out.clear();
    for (const int64_t end = hit + counts.at(i); hit < end; ++hit) {
      check(hit < hits && at + id_lengths.at(hit) <= bytes.size(), "fewer hits than counted");
      body.assign(1, '\x0a');  // id = 1
      put_varint(body, id_lengths.at(hit));
      body.append(bytes, at, id_lengths.at(hit));
      at += id_lengths.at(hit);
      body.push_back('\x11');  // score = 2
      const double score = scores.at(hit);
      body.append(reinterpret_cast<const char*>(&score), sizeof score);
      body.push_back('\x38');  // shard = 7
      put_varint(body, static_cast<uint64_t>(numbers.at(hit)));
      body.push_back('\x40');  // passage = 8
      put_varint(body, passages.at(hit));
      put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
      put_varint(out, body.size());
      out.append(body);
    }
    encoded.append(py::bytes(out));
  }
  return encoded;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels; see shoal.kernels.";
  module.def("squares", &squares, py::arg("vectors").noconvert());
  module.def("rank", &rank, py::arg("similarity"), py::arg("queries").noconvert(),
             py::arg("query_squares").noconvert(), py::arg("proposals").noconvert(),
             py::arg("top_k").noconvert(), py::arg("vectors").noconvert(),
             py::arg("row_squares").noconvert(), py::arg("row_documents").noconvert(),
             py::arg("row_starts").noconvert(), py::arg("ids").noconvert(),
             py::arg("id_starts").noconvert(), py::arg("sequences").noconvert(),
             py::arg("live").noconvert());
  module.def("merge", &merge, py::arg("parts"), py::arg("top_k").noconvert());
  module.def("encode", &encode, py::arg("counts").noconvert(), py::arg("ids"),
             py::arg("id_lengths").noconvert(), py::arg("scores").noconvert(),
             py::arg("passages").noconvert(), py::arg("numbers").noconvert(), py::arg("field"));
  bind_maxsim(module);
}

#include <sae/files/array_view.hpp>

#include <cstring>
#include <vector>

#include "catch_compat.hpp"

namespace {

using sae::ArrayView, sae::Dtype, sae::Index;

/// Numbers 0, 1, 2, ... of float32 from an odd address on.
struct Numbers {
  explicit Numbers(Index n) : bytes(static_cast<std::size_t>(4 * n + 1)) {
    for (Index i = 0; i < n; ++i) {
      const auto value = static_cast<float>(i);
      std::memcpy(bytes.data() + 1 + 4 * i, &value, 4);
    }
  }
  std::vector<std::byte> bytes;
  ArrayView view(std::vector<Index> shape, std::vector<Index> strides = {}, Index offset = 0) const {
    return {Dtype::float32, std::move(shape), std::move(strides), bytes.data() + 1 + 4 * offset};
  }
};

}  // namespace

TEST_CASE("read_matrix: any strides, both ways round, equal the definition", "[files][array]") {
  const Numbers numbers(3 * 200 * 150);
  for (const auto& [rows, cols] : {std::pair<Index, Index>{1, 1}, {3, 5}, {64, 64}, {65, 130}, {200, 7}, {0, 4}, {4, 0}})
    for (const auto& [down, right] :
         {std::pair<Index, Index>{cols, 1}, {1, rows}, {cols + 3, 1}, {2, 2 * rows}, {0, 1}, {1, 0}, {0, 0}})
      for (const bool transposed : {false, true}) {
        CAPTURE(rows, cols, down, right, transposed);
        const ArrayView view = numbers.view({rows, cols}, {down, right}, 5);
        const auto got = sae::read_matrix<double>(view, "file", "w", transposed);
        REQUIRE(got.rows() == (transposed ? cols : rows));
        REQUIRE(got.cols() == (transposed ? rows : cols));
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < cols; ++j)
            REQUIRE((transposed ? got.row(j)[i] : got.row(i)[j]) == static_cast<double>(5 + i * down + j * right));
      }
  CHECK(sae::read_matrix<float>(numbers.view({}, {}, 7), "file", "w")[0] == 7);
  // No pass over rows or columns that hold nothing.
  for (const auto& shape : {std::vector<Index>{Index{1} << 62, 0}, {0, Index{1} << 62}})
    for (const bool transposed : {false, true})
      CHECK(sae::read_matrix<float>(numbers.view(shape), "file", "w", transposed).rows() == shape[transposed ? 1 : 0]);
  const auto vector = sae::read_matrix<float>(numbers.view({3}, {4}), "file", "w");
  CHECK(vector.rows() == 1);
  CHECK(vector.row(0)[2] == 8);
}

TEST_CASE("read_matrix refuses what is no matrix of such numbers", "[files][array]") {
  const Numbers numbers(8);
  CHECK_THROWS_WITH(sae::read_matrix<float>(numbers.view({2, 2, 2}), "f.pt", "w"),
                    "f.pt: tensor w has shape [2, 2, 2]; two axes are the most here");
  CHECK_THROWS_WITH(sae::read_matrix<std::int32_t>(numbers.view({2}), "f.pt", "k"),
                    "f.pt: tensor k holds float32, which is not read as int32");
}

TEST_CASE("ArrayView knows what lies in C order", "[files][array]") {
  const Numbers numbers(24);
  CHECK(numbers.view({2, 3, 4}).contiguous());
  CHECK(numbers.view({2, 3, 4}, {12, 4, 1}).contiguous());
  CHECK(numbers.view({2, 1, 4}, {4, 99, 1}).contiguous());
  CHECK_FALSE(numbers.view({3, 4}, {1, 3}).contiguous());
  CHECK(numbers.view({2, 3, 4}).stride(0) == 12);
  CHECK(numbers.view({}).elements() == 1);
  CHECK(numbers.view({2, 3, 4}).elements() == 24);
}

#include <sae/core/types.hpp>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "catch_compat.hpp"

namespace {

using sae::Batch;
using sae::Index;

// The rows as a Batch sees them, and where they lie.
struct Seen {
  sae::Matrix<float> rows;
  const float* data;
  Index stride;
};
template <int D = sae::Dynamic>
Seen look(const std::type_identity_t<Batch<float, D>>& x) {
  Seen seen{sae::Matrix<float>(x.rows(), x.cols()), x.row(0), x.stride()};
  for (Index b = 0; b < x.rows(); ++b)
    for (Index j = 0; j < x.cols(); ++j) seen.rows(b, j) = x.row(b)[j];
  CHECK((x.map() - seen.rows).cwiseAbs().sum() == 0);
  return seen;
}
sae::Matrix<float> counted(Index rows, Index cols) {
  sae::Matrix<float> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(i + 1);
  return out;
}

}  // namespace

TEST_CASE("Batch views row-major data and copies everything else", "[core][types]") {
  const sae::Matrix<float> x = counted(5, 7);
  const auto whole = look(x);
  CHECK(whole.rows == x);
  CHECK(whole.data == x.data());

  const auto block = look(x.block(1, 2, 3, 4));
  CHECK(block.rows == x.block(1, 2, 3, 4));
  CHECK(block.data == &x(1, 2));
  CHECK(block.stride == 7);

  const auto top = look(x.topRows(2));
  CHECK(top.rows == x.topRows(2));
  CHECK(top.data == x.data());

  const Eigen::MatrixXf columns = x;
  const auto copied = look(columns);
  CHECK(copied.rows == x);
  CHECK(copied.data != columns.data());
  const auto turned = look(columns.transpose());  // the transpose of column-major data is row-major
  CHECK(turned.rows == x.transpose());
  CHECK(turned.data == columns.data());
  CHECK(look(x.transpose()).rows == x.transpose());

  CHECK(look(2 * x + sae::Matrix<float>::Ones(5, 7)).rows == 2 * x + sae::Matrix<float>::Ones(5, 7));
  CHECK(look(sae::Matrix<float>::Constant(3, 2, 4.f)).rows == sae::Matrix<float>::Constant(3, 2, 4.f));
  CHECK(look(x.colwise().reverse()).rows == x.colwise().reverse());
}

TEST_CASE("Batch reads maps with any strides", "[core][types]") {
  const sae::Matrix<float> memory = counted(6, 8);
  using Outer = Eigen::Map<const sae::Matrix<float>, 0, Eigen::OuterStride<>>;
  const Outer strided(memory.data(), 4, 5, Eigen::OuterStride<>(8));
  const auto viewed = look(strided);
  CHECK(viewed.rows == memory.block(0, 0, 4, 5));
  CHECK(viewed.data == memory.data());
  CHECK(viewed.stride == 8);

  using Both = Eigen::Map<const sae::Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  const Both every_other(memory.data(), 3, 4, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(16, 2));
  const auto gathered = look(every_other);
  REQUIRE(gathered.rows.rows() == 3);
  for (Index b = 0; b < 3; ++b)
    for (Index j = 0; j < 4; ++j) CHECK(gathered.rows(b, j) == memory(2 * b, 2 * j));
  const Both dense(memory.data(), 3, 4, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(8, 1));
  CHECK(look(dense).data == memory.data());
  CHECK(look(dense).rows == memory.block(0, 0, 3, 4));
  // One row given many times: an outer stride of 0.
  const Outer repeated(memory.data(), 3, 8, Eigen::OuterStride<>(0));
  CHECK(look(repeated).rows == memory.row(0).replicate(3, 1));
}

TEST_CASE("Batch takes a single vector as one row", "[core][types]") {
  const sae::Matrix<float> x = counted(4, 6);
  const Eigen::VectorXf column = x.row(2).transpose();
  const Eigen::RowVectorXf row = x.row(2);
  for (const auto& seen : {look(column), look(row), look(x.row(2)), look(column.segment(0, 6))}) {
    CHECK(seen.rows.rows() == 1);
    CHECK(seen.rows == x.row(2));
  }
  CHECK(look(column).data == column.data());
  CHECK(look(x.row(2)).data == &x(2, 0));
  CHECK(look(x.col(3)).rows == x.col(3).transpose());  // inner stride 6
  CHECK(look(Eigen::MatrixXf(x).row(1)).rows == x.row(1));
  const Eigen::Matrix<float, 6, 1> fixed = column;
  CHECK(look<6>(fixed).rows == x.row(2));
  CHECK(look<6>(Eigen::Matrix<float, 1, 6>(row)).rows == x.row(2));
  CHECK(look<6>(x).rows == x);  // a width known at run time only

  // Rows of width 1 are rows, unless the width is unknown and the type is a column vector.
  const Eigen::VectorXf scalars = Eigen::VectorXf::LinSpaced(5, 0, 4);
  const auto narrow = look<1>(scalars);
  CHECK(narrow.rows.rows() == 5);
  CHECK(narrow.rows.cols() == 1);
  CHECK(narrow.rows.col(0) == scalars);
  CHECK(look(sae::Matrix<float>(scalars)).rows.rows() == 5);
}

TEST_CASE("Batch takes array expressions", "[core][types]") {
  const sae::Matrix<float> x = counted(3, 4);
  CHECK(look(x.array() * 2).rows == 2 * x);
  const Eigen::ArrayXXf columns = x.array();
  CHECK(look(columns).rows == x);
  const Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = x.array();
  CHECK(look(rows).data == rows.data());
}

TEST_CASE("Batch without rows or columns", "[core][types]") {
  const sae::Matrix<float> none(0, 5), thin(3, 0);
  CHECK(Batch<float>(none).rows() == 0);
  CHECK(Batch<float>(none).cols() == 5);
  CHECK(Batch<float>(thin).rows() == 3);
  CHECK(Batch<float>(thin).cols() == 0);
  CHECK(Batch<float>(Eigen::MatrixXf(0, 4)).cols() == 4);
  static_assert(!std::is_copy_constructible_v<Batch<float>> && !std::is_copy_assignable_v<Batch<float>>);
}

TEST_CASE("Batch over memory and over a tensor", "[core][types]") {
  const sae::Matrix<float> memory = counted(4, 5);
  const Batch<float> piece(memory.data() + 1, 3, 4, 5);
  CHECK(look(piece).rows == memory.block(0, 1, 3, 4));
  CHECK(look(Batch<float>(memory.data(), 2, 5)).rows == memory.topRows(2));
  sae::Tensor<float> tensor(4, 5);
  tensor.map() = memory;
  CHECK(look(Batch<float>(tensor)).rows == memory);
  CHECK(Batch<float>(tensor).row(0) == tensor.data());
}

TEST_CASE("Tensor: shape, rows, views, equality", "[core][types]") {
  sae::Tensor<double> t(3, 4);
  CHECK(t.size() == 12);
  CHECK(t.map().cwiseAbs().sum() == 0);
  t.row(1)[2] = 5;
  CHECK(t[6] == 5);
  CHECK(t.map()(1, 2) == 5);
  const sae::Tensor<double>& constant = t;
  CHECK(constant.map()(1, 2) == 5);
  CHECK(constant.row(1)[2] == 5);
  sae::Tensor<double> same = t;
  CHECK(same == t);
  same[0] = 1;
  CHECK_FALSE(same == t);
  t.set_zero();
  CHECK(t.map().cwiseAbs().sum() == 0);
  t[0] = 1;
  t.resize(4, 3);
  CHECK(t.map().cwiseAbs().sum() == 0);  // whatever stood there
  CHECK_FALSE(t == sae::Tensor<double>(3, 4));
  CHECK(sae::Tensor<double>() == sae::Tensor<double>(0, 0));
  CHECK(reinterpret_cast<std::uintptr_t>(sae::Tensor<float>(1, 1).data()) % 64 == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(sae::Buffer<float>(7).data()) % 64 == 0);
}

TEST_CASE("Tensor: what was moved from is empty and can be used again", "[core][types]") {
  sae::Tensor<float> from(2, 3), to;
  from.map().setConstant(5);
  const float* const data = from.data();
  to = std::move(from);
  CHECK(to.data() == data);
  CHECK(to.rows() == 2);
  CHECK(from.size() == 0);  // NOLINT: that is the point
  CHECK(from.rows() == 0);
  const sae::Tensor<float> third(std::move(to));
  CHECK(to.cols() == 0);  // NOLINT
  CHECK(third.map().sum() == 30);
  from.resize(1, 1);
  CHECK(from[0] == 0);
}

#include <sae/core/half.hpp>
#include <sae/files/torch_file.hpp>
#include <sae/files/torch_writer.hpp>

#include <cstdint>
#include <span>
#include <vector>

#include "catch_compat.hpp"
#include "temp_folder.hpp"

namespace {
using sae::Index;
template <class T>
std::span<const T> view(const std::vector<T>& of) {
  return of;
}
}  // namespace

TEST_CASE("TorchWriter: what it writes is read back, any kind, order and strides", "[files][torch]") {
  TempFolder temp;
  const std::vector<float> w{0, 1, 2, 3, 4, 5};
  const std::vector<double> d{1e300};
  const std::vector<std::int32_t> k{7};
  const std::vector<std::int64_t> sizes{1, -2, Index{1} << 40};
  const std::vector<sae::bfloat16> half{sae::bfloat16(1.5F), sae::bfloat16(-2.0F)};
  sae::TorchWriter out;
  out.add("w", {2, 3}, view(w));
  out.add("by columns", {3, 2}, view(w), {1, 3});
  out.add("threshold", {}, view(d));
  out.add("k", {}, view(k));
  out.add("sizes", {3}, view(sizes));
  out.add("half", {2}, view(half));
  out.add("none", {0, 4}, std::span<const float>());
  out.save(temp / "x.pt");
  const sae::TorchFile file(temp / "x.pt");
  file.check();
  CHECK(file.root().size() == 7);
  CHECK(file.root().key_text(1) == "by columns");
  const auto tensors = file.tensors();
  for (const bool turned : {false, true}) {
    const auto got = sae::read_matrix<float>(tensors.at(turned ? "by columns" : "w"), "x.pt", "w");
    REQUIRE(got.rows() == (turned ? 3 : 2));
    for (Index i = 0; i < got.rows(); ++i)
      for (Index j = 0; j < got.cols(); ++j) CHECK(got.row(i)[j] == static_cast<float>(turned ? j * 3 + i : i * 3 + j));
  }
  CHECK(file.root().at("threshold").read<double>()[0] == 1e300);
  CHECK(file.root().at("threshold").tensor().shape.empty());
  CHECK(file.root().at("k").tensor().dtype == sae::Dtype::int32);
  CHECK(file.root().at("k").read<std::int32_t>()[0] == 7);
  CHECK(file.root().at("sizes").read<std::int64_t>()[2] == Index{1} << 40);
  CHECK(file.root().at("half").tensor().dtype == sae::Dtype::bfloat16);
  CHECK(file.root().at("half").read<float>()[1] == -2.0F);
  CHECK(file.root().at("none").tensor().elements() == 0);
  // Equal calls, equal bytes.
  out.save(temp / "y.pt");
  CHECK(sae::read_file(temp / "x.pt") == sae::read_file(temp / "y.pt"));
}

TEST_CASE("TorchWriter refuses what is no tensor", "[files][torch]") {
  const std::vector<float> w{0, 1, 2, 3, 4, 5};
  const std::vector<std::uint32_t> unknown{1};
  sae::TorchWriter out;
  out.add("w", {2, 3}, view(w));
  CHECK_THROWS_WITH(out.add("w", {6}, view(w)), "torch: tensor w is added twice");
  CHECK_THROWS_WITH(out.add("v", {2, 4}, view(w)), "torch: tensor v: 6 values do not have the shape [2, 4]");
  CHECK_THROWS_AS(out.add("v", {2, 3}, view(w), {1}), sae::ShapeError);
  out.add("u", {1}, view(unknown));
  TempFolder temp;
  CHECK_THROWS_WITH(out.save(temp / "x.pt"), "torch: numbers of uint32 have no storage");
  CHECK(temp.names().empty());
}

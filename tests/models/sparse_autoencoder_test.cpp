#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/l1.hpp>

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;
using namespace sae_test;

using TopKModel = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK>;
using ReLUModel = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU>;

sae::Matrix<float> float_rows(Index rows, Index width, std::uint64_t seed) {
  return random_rows(rows, width, seed).cast<float>();
}
template <class Parameters>
bool same_bytes(const Parameters& a, const Parameters& b) {
  bool same = true;
  Parameters::visit([&](std::string_view, const auto& x, const auto& y) { same = same && x == y; }, a, b);
  return same;
}

}  // namespace

TEST_CASE("rows may come as any Eigen expression, map or vector", "[models]") {
  TopKModel model(6, 40, {.k = 5});
  randomise(model, 1);
  const sae::Matrix<float> x = float_rows(8, 6, 1);
  const auto expected = model.encode(x);
  const Eigen::MatrixXf columns = x;
  CHECK(model.encode(columns) == expected);
  CHECK(model.encode(Eigen::MatrixXf(x)) == expected);
  CHECK(model.encode(x * 1.0f) == expected);
  sae::Matrix<float> wide = float_rows(10, 9, 2);
  wide.block(1, 2, 8, 6) = x;
  CHECK(model.encode(wide.block(1, 2, 8, 6)) == expected);
  CHECK(model.reconstruct(wide.block(1, 2, 8, 6)) == model.reconstruct(x));
  using Strided = Eigen::Map<const sae::Matrix<float>, 0, Eigen::OuterStride<>>;
  CHECK(model.encode(Strided(&wide(1, 2), 8, 6, Eigen::OuterStride<>(9))) == expected);
  CHECK(model.gradient(Strided(&wide(1, 2), 8, 6, Eigen::OuterStride<>(9))).parameters.W_dec ==
        model.gradient(x).parameters.W_dec);
  CHECK(model.loss(Strided(&wide(1, 2), 8, 6, Eigen::OuterStride<>(9))).total == model.loss(x).total);
  CHECK(model.pre_activations(wide.block(1, 2, 8, 6)) == model.pre_activations(x));

  const auto one = model.encode(x.row(3));
  CHECK(one.rows() == 1);
  CHECK(model.encode(Eigen::VectorXf(x.row(3).transpose())) == one);
  CHECK(model.encode(Eigen::RowVectorXf(x.row(3))) == one);
  CHECK(model.reconstruct(Eigen::VectorXf(x.row(3).transpose())).rows() == 1);
  // Codes may be given dense, with strides too.
  sae::Matrix<float> dense = sae::Matrix<float>::Ones(8, 45);
  dense.block(0, 3, 8, 40) = expected.dense();
  CHECK(model.decode(dense.block(0, 3, 8, 40)) == model.decode(expected));
  CHECK(model.decode(Eigen::MatrixXf(expected.dense())) == model.decode(expected));
}

TEST_CASE("encode and gradient give the same bytes for any number of threads", "[models][threads]") {
  const auto check = [](const auto& model, const auto& objective) {
    using Model = std::decay_t<decltype(model)>;
    for (const Index rows : {1, 33, 300}) {
      const sae::Matrix<float> x = float_rows(rows, 20, 3);
      std::vector<std::uint8_t> dead(static_cast<std::size_t>(model.latents()), 0);
      for (std::size_t i = 0; i < dead.size(); i += 3) dead[i] = 1;
      const auto everything = [&](int count) {
        sae::Threads threads(count);
        typename Model::template Workspace<std::decay_t<decltype(objective)>> workspace;
        workspace.step.dead = dead;
        auto gradient = model.gradient(x, objective, workspace, threads);
        return std::make_tuple(model.encode(x, threads), model.reconstruct(x, threads), model.loss(x, objective, threads).total,
                               gradient.loss.total, std::move(gradient.parameters));
      };
      const auto one = everything(1);
      for (const int count : {2, 3, 8}) {
        const auto many = everything(count);
        CAPTURE(rows, count);
        CHECK(std::get<0>(many) == std::get<0>(one));
        CHECK(std::get<1>(many) == std::get<1>(one));
        CHECK(std::get<2>(many) == std::get<2>(one));
        CHECK(std::get<3>(many) == std::get<3>(one));
        CHECK(same_bytes(std::get<4>(many), std::get<4>(one)));
      }
    }
  };
  TopKModel sparse(20, 700, {.k = 9}), ranked(20, 700, {.k = 200, .rank_by_decoder_norm = true});
  ReLUModel relu(20, 700);
  randomise(sparse, 2);
  randomise(ranked, 3);
  randomise(relu, 4);
  check(sparse, sae::Objective{sae::AuxK{.coefficient = 1, .raw_values = true}});
  check(ranked, sae::Objective{sae::AuxK{.coefficient = 1, .rank_by_decoder_norm = true}});
  check(relu, sae::Objective{sae::L1{}});
}

TEST_CASE("a const model serves several threads at once", "[models][threads]") {
  TopKModel model(12, 300, {.k = 6});
  randomise(model, 5);
  const sae::Matrix<float> x = float_rows(100, 12, 4);
  const auto codes = model.encode(x);
  const auto gradient = model.gradient(x);
  std::vector<int> right(4, 0);
  std::vector<std::thread> callers;
  for (auto& mine : right)
    callers.emplace_back([&] {
      for (int i = 0; i < 10; ++i)
        mine += model.encode(x) == codes && same_bytes(model.gradient(x).parameters, gradient.parameters) ? 1 : 0;
    });
  for (auto& caller : callers) caller.join();
  CHECK(right == std::vector<int>(4, 10));
}

TEST_CASE("a workspace serves batches of any size, one after the other", "[models]") {
  TopKModel model(12, 300, {.k = 6});
  randomise(model, 6);
  TopKModel::Workspace<> workspace;
  sae::Tensor<float> out;
  sae::ScratchPool<float> scratch;
  for (const Index rows : {40, 3, 500, 0, 1, 40}) {
    const sae::Matrix<float> x = float_rows(rows, 12, 5);
    const auto& codes = model.encode_into(x, workspace);
    CHECK(codes == model.encode(x));
    model.decode_into(codes, out, scratch);
    CHECK(out.map() == model.reconstruct(x));
    if (rows > 0) CHECK(same_bytes(model.gradient(x, sae::Objective<>{}, workspace).parameters, model.gradient(x).parameters));
  }
}

TEST_CASE("no rows: codes and reconstructions without rows, no loss", "[models]") {
  const TopKModel model(5, 10, {.k = 2});
  const sae::Matrix<float> none(0, 5);
  CHECK(model.encode(none).rows() == 0);
  CHECK(model.encode(none).latents() == 10);
  CHECK(model.reconstruct(none).rows() == 0);
  CHECK(model.reconstruct(none).cols() == 5);
  CHECK(model.pre_activations(none).cols() == 10);
  CHECK(model.encode_dense(none).cols() == 10);
  CHECK_THROWS_WITH(model.loss(none), "a batch without rows has no loss");
  CHECK_THROWS_WITH(model.gradient(none), "a batch without rows has no loss");
}

TEST_CASE("wrong sizes and settings are refused in a sentence", "[models]") {
  CHECK_THROWS_WITH(TopKModel(5, 10, {.k = 11}), "TopK: k = 11 is not in [1, 10] (the number of latents)");
  CHECK_THROWS_WITH(TopKModel(5, 10, {.k = 0}), "TopK: k = 0 is not in [1, 10] (the number of latents)");
  CHECK_NOTHROW(TopKModel(5, 10, {.k = 10}));
  CHECK_THROWS_WITH(TopKModel(0, 10, {.k = 1}), "SparseAutoencoder: sizes d_in = 0, latents = 10 are not positive");
  CHECK_THROWS_WITH(TopKModel(5, -1, {.k = 1}), "SparseAutoencoder: sizes d_in = 5, latents = -1 are not positive");
  CHECK_THROWS_WITH(TopKModel(5, Index{1} << 40, {.k = 1}),
                    "SparseAutoencoder: sizes d_in = 5, latents = 1099511627776 are not both at most 2^30");
  CHECK_THROWS_AS(TopKModel(Index{1} << 40, 5, {.k = 1}), sae::ValueError);
  using Fixed = sae::SparseAutoencoder<5, 10, sae::ReLU>;
  CHECK_THROWS_WITH(Fixed(5, 11), "SparseAutoencoder: sizes [5 -> 11] differ from the fixed ones [5 -> 10]");
  CHECK_THROWS_AS(Fixed(4, 10), sae::ShapeError);
  CHECK_THROWS_AS(ReLUModel(3, 4, {}, {.initialization = {.decoder_norm = 0}}), sae::ValueError);

  const TopKModel model(5, 10, {.k = 2});
  const sae::Matrix<float> narrow = float_rows(3, 4, 1), x = float_rows(3, 5, 1);
  const std::string message = "rows have 4 columns, the model reads 5";
  CHECK_THROWS_WITH(model.encode(narrow), message);
  CHECK_THROWS_WITH(model.reconstruct(narrow), message);
  CHECK_THROWS_WITH(model.pre_activations(narrow), message);
  CHECK_THROWS_WITH(model.loss(narrow), message);
  CHECK_THROWS_WITH(model.gradient(narrow), message);
  CHECK_THROWS_AS(model.encode(narrow), sae::ShapeError);
  CHECK_THROWS_WITH(model.decode(sae::Codes<float>(9)), "codes have 9 latents, the model has 10");
  CHECK_THROWS_AS(model.decode(sae::Matrix<float>(sae::Matrix<float>::Zero(2, 11))), sae::ShapeError);
  CHECK_THROWS_WITH(model.gradient(x, sae::Objective{sae::L1{.coefficient = -1}}),
                    "L1: coefficient = -1 is not in [0, infinity)");
  CHECK_THROWS_WITH(model.loss(x, sae::Objective{sae::AuxK{.coefficient = -0.5}}),
                    "AuxK: coefficient = -0.5 is not in [0, infinity)");
  CHECK_THROWS_WITH(model.loss(x, sae::Objective{sae::AuxK{.k = 11}}),
                    "AuxK: k = 11 is not in [0, 10] (the number of latents; 0 takes D / 2)");
  TopKModel::Workspace<> workspace;
  const std::vector<std::uint8_t> dead(9, 1);
  workspace.step.dead = dead;
  CHECK_THROWS_WITH(model.gradient(x, sae::Objective<>{}, workspace),
                    "the dead latents are told for 9 latents, the model has 10");
}

TEST_CASE("fold_input_scale: a model of scaled rows reads raw rows", "[models][fold]") {
  const auto check = [](auto model) {
    randomise(model, 7);
    const auto scaled_model = model;
    const double scale = 0.037;
    const Dense raw = random_rows(60, 10, 6, 20);
    const Dense scaled = scale * raw;
    const auto before = model.encode(scaled);
    const Dense expected = model.reconstruct(scaled) / scale;
    model.fold_input_scale(scale);
    const double bound = 100 * std::numeric_limits<double>::epsilon() * largest_magnitude(expected);
    CHECK(mask_of(model.encode(raw)) == mask_of(before));
    CHECK(largest_difference(model.reconstruct(raw), expected) <= bound);
    CHECK(largest_difference(model.encode(raw).dense(), before.dense() / scale) <= bound);
    CHECK(model.W_enc() == scaled_model.W_enc());  // directions stay
    CHECK(model.W_dec() == scaled_model.W_dec());
  };
  for (const bool subtract : {true, false}) {
    const sae::ModelOptions options{.subtract_decoder_bias = subtract};
    check(sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>(10, 80, {}, options));
    check(sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, double>(10, 80, {.k = 7}, options));
    check(sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, double>(10, 80, {.k = 7, .rank_by_decoder_norm = true},
                                                                                options));
  }
  ReLUModel model(3, 4);
  for (const double scale : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    CHECK_THROWS_AS(model.fold_input_scale(scale), sae::ValueError);
}

TEST_CASE("fold_decoder_norms: unit rows, the same reconstruction", "[models][fold]") {
  const auto check = [](auto model) {
    randomise(model, 8);
    model.W_dec().row(5).setZero();
    model.W_dec().row(6) *= 50;
    model.parameters().b_enc[5] = 100;  // a latent that always fires and writes nothing
    const Dense x = random_rows(60, 10, 7);
    const auto before = model.encode(x);
    const Dense expected = model.reconstruct(x);
    const std::vector<double> norms = naive_norms(naive(model).W_dec);
    model.fold_decoder_norms();
    CHECK(largest_difference(model.reconstruct(x), expected) <= 1e-12);
    const auto after = model.encode(x);
    for (Index i = 0; i < 80; ++i) {
      if (i == 5) continue;
      CHECK(std::abs(model.W_dec().row(i).norm() - 1) <= 1e-14);
      for (Index b = 0; b < 60; ++b)
        CHECK(std::abs(after.coefficient(b, i) - before.coefficient(b, i) * norms[static_cast<std::size_t>(i)]) <= 1e-12);
    }
    CHECK(model.W_dec().row(5).isZero(0));
  };
  for (const bool subtract : {true, false}) {
    const sae::ModelOptions options{.subtract_decoder_bias = subtract};
    check(sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::ReLU, double>(10, 80, {}, options));
    check(sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, double>(10, 80, {.k = 7, .rank_by_decoder_norm = true},
                                                                                options));
  }
  TopKModel plain(10, 80, {.k = 7});
  const auto untouched = plain;
  CHECK_THROWS_WITH(plain.fold_decoder_norms(), Catch::Matchers::ContainsSubstring("only rank_by_decoder_norm can be folded"));
  CHECK(same_bytes(plain.parameters(), untouched.parameters()));
}

TEST_CASE("what a model tells of itself", "[models]") {
  TopKModel model(3, 4, {.k = 2}, {.subtract_decoder_bias = false});
  CHECK(model.d_in() == 3);
  CHECK(model.latents() == 4);
  CHECK(model.activation().k == 2);
  CHECK_FALSE(model.subtracts_decoder_bias());
  model.W_enc()(1, 2) = 7;
  CHECK(model.parameters().W_enc.row(1)[2] == 7);
  model.parameters().b_enc[3] = 5;
  model.parameters().b_dec[2] = 6;
  const TopKModel& constant = model;
  CHECK(constant.W_enc()(1, 2) == 7);
  CHECK(constant.b_enc()(0, 3) == 5);
  CHECK(constant.b_dec()(0, 2) == 6);
  CHECK(constant.W_dec().rows() == 4);

  std::vector<std::string> names;
  std::vector<Index> shapes;
  sae::for_each_parameter(constant, [&](std::string_view name, const auto& tensor) {
    names.emplace_back(name);
    shapes.insert(shapes.end(), {tensor.rows(), tensor.cols()});
  });
  CHECK(names == std::vector<std::string>{"W_enc", "b_enc", "W_dec", "b_dec"});
  CHECK(shapes == std::vector<Index>{4, 3, 1, 4, 4, 3, 1, 3});
  sae::for_each_parameter(model, [](std::string_view, auto& tensor) { tensor.set_zero(); });
  CHECK(model.W_enc().isZero(0));

  sae::SparseAutoencoder deduced(3, 4, sae::TopK{.k = 2}, {.subtract_decoder_bias = false});
  static_assert(std::is_same_v<decltype(deduced), TopKModel>);
  sae::SparseAutoencoder<3, 4, sae::TopK> fixed({.k = 2});
  CHECK(fixed.latents() == 4);
  CHECK(fixed.W_dec().row(0).size() == 3);
}

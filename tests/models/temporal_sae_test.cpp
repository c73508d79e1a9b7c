// TemporalSae against its formulas row by row, head by head; what a sequence is; what is refused.
#include <sae/models/temporal_sae.hpp>

#include <sae/training/evaluate.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using namespace sae_test;
using Catch::Matchers::ContainsSubstring;
using sae::Index, sae::Matrix;

struct Shape {
  Index width = 10, latents = 24, layers = 2, query_width = 12;
  bool tied = false;
};

template <class Scalar>
sae::TemporalParameters<Scalar> some_parameters(const Shape& shape) {
  sae::TemporalParameters<Scalar> p;
  p.resize(shape.width, shape.latents, shape.layers, shape.query_width, shape.tied);
  std::uint64_t seed = 5;
  sae::TemporalParameters<Scalar>::visit(
      [&](std::string_view name, auto& tensor) {
        const double size = name == "W_enc" || name == "W_dec" ? 3 : name.ends_with("bias") ? 0.05 : 0.5;
        tensor.map() = random_rows(tensor.rows(), tensor.cols(), seed++, size).template cast<Scalar>();
      },
      p);
  return p;
}

struct Found {
  Matrix<double> novel, predicted, rows;
};

/// The formulas of the header, one number after the other.
template <class Scalar>
Found by_hand(const sae::TemporalSae<Scalar>& model, const Matrix<double>& x) {
  const auto& p = model.parameters();
  const auto& o = model.options();
  const Index T = x.rows(), D = x.cols(), F = model.latents();
  const Matrix<double> W_enc = p.encoder().map().template cast<double>(), W_dec = p.W_dec.map().template cast<double>();
  const Eigen::RowVectorXd b_dec = p.b_dec.map().template cast<double>().row(0);
  Matrix<double> r = x;
  std::vector<double> spread(static_cast<std::size_t>(T), 1 / o.input_scale), offset(static_cast<std::size_t>(T), 0);
  for (Index t = 0; t < T; ++t) {
    auto& m = offset[static_cast<std::size_t>(t)];
    auto& s = spread[static_cast<std::size_t>(t)];
    double added = 0;
    if (o.input_normalisation == sae::InputNormalisation::layer_norm) {
      m = x.row(t).mean();
      s = std::sqrt((x.row(t).array() - m).square().sum() / static_cast<double>(D - 1));
      added = 1e-5;
    } else if (o.input_normalisation == sae::InputNormalisation::constant_norm) {
      s = x.row(t).norm() / std::sqrt(static_cast<double>(D));
    }
    r.row(t) = (x.row(t).array() - m) / (s + added);
  }
  if (o.subtract_decoder_bias) r.rowwise() -= b_dec;
  const auto encode = [&] { return Matrix<double>((r * W_enc.transpose() / (4.0 * static_cast<double>(D))).cwiseMax(0.0)); };
  Found out{{}, Matrix<double>::Zero(T, F), {}};
  for (const auto& layer : p.layers) {
    const auto map = [](const auto& of, const Eigen::RowVectorXd& from) {
      return Eigen::RowVectorXd(from * of.weight.map().template cast<double>().transpose() +
                                of.bias.map().template cast<double>().row(0));
    };
    const Matrix<double> z = encode();
    const Index E = layer.q_target.weight.rows(), e = E / o.heads, f = F / o.heads;
    for (Index t = 0; t < T; ++t) {
      const Eigen::RowVectorXd q = map(layer.q_target, z.row(t));
      Eigen::RowVectorXd a = Eigen::RowVectorXd::Zero(F);
      for (Index h = 0; h < o.heads; ++h) {
        double sum = 0;
        for (Index s = 0; s <= t; ++s) {
          const Eigen::RowVectorXd context = s == 0 ? Eigen::RowVectorXd::Zero(F).eval() : Eigen::RowVectorXd(z.row(s - 1));
          const double weight = std::exp(q.segment(h * e, e).dot(map(layer.k_ctx, context).segment(h * e, e)) /
                                         std::sqrt(static_cast<double>(e)));
          sum += weight;
          a.segment(h * f, f) += weight * map(layer.v_ctx, context).segment(h * f, f);
        }
        a.segment(h * f, f) /= sum;
      }
      const Eigen::RowVectorXd y = map(layer.c_proj, a).cwiseMax(0.0), predicted = y * W_dec;
      const double s = predicted.dot(r.row(t)) / std::pow(predicted.norm() + 1e-6, 2);
      out.predicted.row(t) += s * y;
      r.row(t) -= s * predicted;  // z of this layer is that of before
    }
  }
  out.novel = encode();
  for (Index t = 0; t < T && o.k > 0; ++t) {
    std::vector<double> sorted(out.novel.row(t).data(), out.novel.row(t).data() + F);
    std::sort(sorted.rbegin(), sorted.rend());
    for (Index i = 0; i < F; ++i)
      if (out.novel(t, i) < sorted[static_cast<std::size_t>(o.k - 1)]) out.novel(t, i) = 0;
  }
  out.rows = (out.novel + out.predicted) * W_dec;
  if (o.subtract_decoder_bias || !p.tied()) out.rows.rowwise() += b_dec;
  for (Index t = 0; t < T; ++t)
    out.rows.row(t) = out.rows.row(t).array() * spread[static_cast<std::size_t>(t)] + offset[static_cast<std::size_t>(t)];
  return out;
}

template <class Scalar>
void require_near(const Matrix<Scalar>& got, const Matrix<double>& want, double bound) {
  REQUIRE(got.rows() == want.rows());
  REQUIRE(got.cols() == want.cols());
  const double unit = want.cwiseAbs().maxCoeff();
  REQUIRE(unit > 0);
  CHECK((got.template cast<double>() - want).cwiseAbs().maxCoeff() <= bound * unit);
}

template <class Scalar>
void require_by_hand(const Shape& shape, const sae::TemporalOptions& options, Index rows) {
  CAPTURE(shape.layers, shape.query_width, shape.tied, options.heads, options.k, options.subtract_decoder_bias, rows);
  const sae::TemporalSae<Scalar> model(some_parameters<Scalar>(shape), options);
  const Matrix<double> x = random_rows(rows, shape.width, 77, 2);
  const Matrix<Scalar> given = x.cast<Scalar>();
  const Found want = by_hand(model, given.template cast<double>());
  const double bound = std::is_same_v<Scalar, double> ? 1e-12 : 2e-5;
  const auto both = model.encode_with_predictions(given);
  require_near<Scalar>(both.novel.dense(), want.novel, bound);
  CHECK(((both.novel.dense().array() != 0) == (want.novel.array() != 0)).all());
  if (shape.layers > 0) require_near<Scalar>(both.predicted.dense(), want.predicted, bound);
  CHECK(both.predicted.rows() == rows);
  CHECK(model.encode(given) == both.novel);
  const Matrix<Scalar> reconstructed = model.reconstruct(given);
  require_near<Scalar>(reconstructed, want.rows, bound);
  CHECK(model.decode(both.novel, given) == reconstructed);
}

}  // namespace

TEST_CASE("a temporal SAE computes its formulas", "[models][temporal]") {
  const sae::TemporalOptions plain{.heads = 2, .k = 4, .input_scale = 0.6};
  for (const Index rows : {1, 2, 9, 70, 300}) require_by_hand<double>({}, plain, rows);
  require_by_hand<float>({}, plain, 1);
  require_by_hand<float>({}, plain, 70);
  for (const bool tied : {false, true})
    for (const bool subtract : {false, true}) {
      require_by_hand<double>({.tied = tied}, {.heads = 4, .k = 3, .subtract_decoder_bias = subtract}, 9);
      require_by_hand<float>({.tied = tied}, {.heads = 4, .k = 0, .subtract_decoder_bias = subtract}, 9);
    }
  for (const Index layers : {0, 1, 3}) require_by_hand<double>({.layers = layers}, plain, 9);
  require_by_hand<double>({.query_width = 1}, {.heads = 1, .k = 24}, 9);
  require_by_hand<double>({.query_width = 24}, {.heads = 24, .k = 1}, 9);
  require_by_hand<double>({.width = 7, .latents = 300, .query_width = 60}, {.heads = 3, .k = 10}, 70);
  for (const auto normalisation : {sae::InputNormalisation::constant_norm, sae::InputNormalisation::layer_norm})
    require_by_hand<double>({}, {.heads = 2, .k = 4, .input_normalisation = normalisation}, 9);
}

TEST_CASE("rows of one call to a temporal SAE are one sequence, of which later rows tell nothing of earlier ones",
          "[models][temporal]") {
  const sae::TemporalSae<double> model(some_parameters<double>({}), {.heads = 2, .k = 4});
  const Matrix<double> x = random_rows(12, 10, 3, 2);
  const Matrix<double> whole = model.encode(x).dense();
  Matrix<double> changed = x;
  changed.row(8) *= -2;
  const Matrix<double> after = model.encode(changed).dense();
  CHECK((after.topRows(8) - whole.topRows(8)).cwiseAbs().maxCoeff() <= 1e-14);
  for (Index t = 8; t < 12; ++t) CHECK((after.row(t) - whole.row(t)).cwiseAbs().maxCoeff() > 1e-6);
  // The same rows as a sequence of their own are predicted from less.
  CHECK((model.encode(x.bottomRows(4)).dense() - whole.bottomRows(4)).cwiseAbs().maxCoeff() > 1e-6);
  CHECK((model.encode(x.topRows(5)).dense() - whole.topRows(5)).cwiseAbs().maxCoeff() <= 1e-14);
  CHECK(model.encode(x.topRows(0)).rows() == 0);
  CHECK(model.reconstruct(x.topRows(0)).rows() == 0);
}

TEST_CASE("what a temporal SAE computes does not depend on threads or on what its workspace saw", "[models][temporal]") {
  const sae::TemporalSae<float> model(some_parameters<float>({.latents = 288, .query_width = 36}), {.heads = 2, .k = 9});
  const Matrix<float> x = random_rows(150, 10, 3, 2).cast<float>();
  sae::Threads one(1), three(3);
  sae::TemporalWorkspace<float> workspace;
  sae::Tensor<float> rows;
  const auto codes = model.reconstruct_into(x, workspace, rows, three);
  CHECK(model.encode(x, one) == codes);
  CHECK(model.reconstruct(x, one) == rows.map());
  model.reconstruct_into(x.topRows(20), workspace, rows, three);
  CHECK(rows.map() == model.reconstruct(x.topRows(20), one));
  CHECK(model.encode_into(x, workspace, three) == codes);
}

TEST_CASE("a change of a temporal SAE's code moves its row along the latent's direction", "[models][temporal]") {
  const sae::TemporalSae<double> model(some_parameters<double>({}), {.heads = 2, .k = 4, .input_scale = 0.5});
  const Matrix<double> x = random_rows(5, 10, 3, 2);
  Matrix<double> dense = model.encode(x).dense();
  dense(3, 7) += 2;
  const Matrix<double> moved = model.decode(sae::Codes<double>::from_dense(dense), x) - model.reconstruct(x);
  const double spread = model.row_spreads(x)[3];
  CHECK(spread == 2);
  CHECK((moved.row(3) - 2 * spread * model.W_dec().row(7)).norm() < 1e-12);
  CHECK((moved.topRows(3).norm() + moved.row(4).norm()) < 1e-12);
}

TEST_CASE("a temporal SAE is evaluated block by block, each a sequence", "[models][temporal]") {
  const sae::TemporalSae<double> model(some_parameters<double>({}), {.heads = 2, .k = 4});
  const Matrix<double> x = random_rows(24, 10, 3, 2);
  double error = 0;
  for (Index first = 0; first < 24; first += 8)
    error += (model.reconstruct(x.middleRows(first, 8)) - x.middleRows(first, 8)).squaredNorm() / 24;
  const auto report = sae::evaluate(model, x, {.block = 8});
  CHECK(report.mse == Approx(error).epsilon(1e-12));
  CHECK(report.l0 <= 4);
  CHECK(sae::evaluate(model, x).mse != Approx(error).epsilon(1e-6));
}

TEST_CASE("tensors and settings that make no temporal SAE are refused", "[models][temporal]") {
  const auto says = [](const Shape& shape, const sae::TemporalOptions& options, const auto& change) -> std::string {
    auto p = some_parameters<float>(shape);
    change(p);
    try {
      const sae::TemporalSae<float> model(std::move(p), options);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  const auto nothing = [](auto&) {};
  CHECK(says({}, {.heads = 2}, nothing).empty());
  CHECK_THAT(says({}, {.heads = 5}, nothing), ContainsSubstring("5 heads"));
  CHECK_THAT(says({}, {.heads = 0}, nothing), ContainsSubstring("heads = 0 is below 1"));
  CHECK_THAT(says({.query_width = 10}, {.heads = 2}, nothing),
             ContainsSubstring("queries of width 10 do not divide 24 latents"));
  CHECK_THAT(says({}, {.heads = 2, .k = 25}, nothing), ContainsSubstring("k = 25 is not in [0, 24]"));
  CHECK_THAT(says({}, {.heads = 2, .input_scale = -1}, nothing), ContainsSubstring("input_scale = -1"));
  CHECK_THAT(says({}, {.heads = 2, .input_normalisation = sae::InputNormalisation::layer_norm, .input_scale = 2}, nothing),
             ContainsSubstring("input_scale = 2 beside"));
  CHECK_THAT(says({}, {.heads = 2}, [](auto& p) { p.b_dec.resize(1, 9); }),
             ContainsSubstring("b_dec is [1 x 9], it should be [1 x 10]"));
  CHECK_THAT(says({}, {.heads = 2}, [](auto& p) { p.W_enc.resize(24, 9); }), ContainsSubstring("W_enc is [24 x 9]"));
  CHECK_THAT(says({}, {.heads = 2}, [](auto& p) { p.layers[1].v_ctx.bias.resize(1, 12); }),
             ContainsSubstring("v_ctx is [1 x 12]"));
  CHECK_THAT(says({.layers = 0}, {}, [](auto& p) { p = {}; }), ContainsSubstring("sizes d_in = 0"));

  const sae::TemporalSae<float> model(some_parameters<float>({}), {.heads = 2});
  const Matrix<float> narrow = Matrix<float>::Zero(3, 9), rows = Matrix<float>::Zero(3, 10);
  CHECK_THROWS_WITH(model.encode(narrow), ContainsSubstring("rows have 9 columns, the model reads 10"));
  CHECK_THROWS_WITH(model.decode(model.encode(rows), narrow), ContainsSubstring("the input is [3 x 9]"));
  CHECK_THROWS_WITH(model.decode(sae::Codes<float>(7), rows), ContainsSubstring("codes have 7 latents"));
}

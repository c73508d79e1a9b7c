#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/training/data_initialization.hpp>

#include <cmath>
#include <set>
#include <string>

#include "catch_compat.hpp"
#include "gradient_check.hpp"

namespace {

using sae::Index;
using namespace sae_test;
template <class Activation>
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation, double>;

Dense shifted(Index rows, Index width, std::uint64_t seed) {
  Dense x = random_rows(rows, width, seed, 1);
  x.rowwise() += Eigen::RowVectorXd::LinSpaced(width, -1, 2);
  return x;
}
// The row of x - mean x that a direction is, or -1.
Index row_of(const Dense& centred, const Eigen::RowVectorXd& direction) {
  for (Index b = 0; b < centred.rows(); ++b)
    if ((centred.row(b).normalized() - direction.normalized()).norm() < 1e-12) return b;
  return -1;
}

}  // namespace

TEST_CASE("latents that start as rows of the data", "[training][data_initialization]") {
  const Dense x = shifted(40, 6, 1), centred = x.rowwise() - x.colwise().mean();
  Model<sae::ReLU> model(6, 30), other = model;
  model.parameters().b_enc[3] = 5;
  model.parameters().b_dec[2] = 7;
  sae::initialize_from_data(model, x, {.share = 1, .decoder_norm = 0.5, .seed = 4});
  std::set<Index> seen;
  for (Index i = 0; i < 30; ++i) {
    CHECK(model.W_dec().row(i).norm() == Approx(0.5));
    seen.insert(row_of(centred, model.W_dec().row(i)));
  }
  CHECK(seen.size() == 30);  // each another row
  REQUIRE(seen.count(-1) == 0);
  CHECK(model.W_enc() == model.W_dec());
  CHECK(model.b_enc().isZero(0));
  CHECK(model.b_dec()(2) == 7);

  // Without data it is noise: the tied start of the same seed. In between it lies on the way from one to the other.
  Model<sae::ReLU> noise = other, tied(6, 30, {}, {.initialization = {.seed = 4}});
  sae::initialize_from_data(noise, x, {.share = 0, .seed = 4});
  CHECK(relative_error(noise.W_dec(), tied.W_dec()) <= 1e-14);
  Model<sae::ReLU> raw = other;  // W_dec of share 0 before its norm: from the same stream of numbers
  sae::Random random(4, 0x1417);
  Dense u(30, 6);
  for (Index n = 0; n < u.size(); ++n) u.data()[n] = random.uniform(-1, 1);
  sae::initialize_from_data(raw, x, {.share = 0.8, .seed = 4});
  for (Index i = 0; i < 30; ++i) {
    const Eigen::RowVectorXd want = 0.8 * centred.row(row_of(centred, model.W_dec().row(i))) + 0.2 * u.row(i);
    CHECK((raw.W_dec().row(i) - want.normalized()).norm() <= 1e-13);
  }

  // More latents than rows: every row comes up.
  Model<sae::ReLU> wide(6, 100);
  sae::initialize_from_data(wide, x, {.share = 1, .seed = 4});
  std::set<Index> all;
  for (Index i = 0; i < 100; ++i) all.insert(row_of(centred, wide.W_dec().row(i)));
  CHECK(all.size() == 40);
  CHECK(all.count(-1) == 0);
  // Rows that are all the same say nothing: noise takes their place.
  Model<sae::ReLU> same = other;
  sae::initialize_from_data(same, Dense::Ones(5, 6), {.share = 1, .seed = 4});
  CHECK(relative_error(same.W_dec(), tied.W_dec()) <= 1e-14);
}

TEST_CASE("pre-activations are centred", "[training][data_initialization]") {
  const Dense x = shifted(50, 6, 2);
  for (const bool subtract : {true, false}) {
    Model<sae::ReLU> model(6, 30, {}, {.subtract_decoder_bias = subtract});
    randomise(model, 3);
    const Dense before = model.pre_activations(x);
    const sae::RowVector<double> bias = model.b_enc();
    sae::center_pre_activations(model, x);
    CHECK(model.pre_activations(x).colwise().mean().cwiseAbs().maxCoeff() <= 1e-13);
    CHECK(relative_error(model.b_enc(), bias - before.colwise().mean()) <= 1e-13);
  }
}

TEST_CASE("the encoder is scaled until unit vectors come back with norm 1", "[training][data_initialization]") {
  Model<sae::ReLU> model(6, 30);
  model.parameters().b_dec.map().setConstant(3);
  const Dense W_enc = model.W_enc(), W_dec = model.W_dec();
  const double norm = sae::scale_encoder_to_unit_reconstruction(model, 5);
  CHECK(norm > 1);  // 30 latents in 6 dimensions: about half of F / D
  CHECK(relative_error(model.W_enc(), W_enc / norm) <= 1e-15);
  CHECK(model.W_dec() == W_dec);
  // x' - b_dec is linear in W_enc: on the same rows the mean is 1 now, on others nearly.
  CHECK(sae::scale_encoder_to_unit_reconstruction(model, 5) == Approx(1).epsilon(1e-12));
  Dense x = random_rows(2000, 6, 9);
  x.rowwise().normalize();
  const Dense back = model.reconstruct(Dense(x.array() + 3));
  CHECK((back.array() - 3).matrix().rowwise().norm().mean() == Approx(1).epsilon(0.05));

  Model<sae::ReLU> silent(6, 30);
  silent.parameters().b_enc.map().setConstant(-100);
  const Dense start = silent.W_enc();
  CHECK(sae::scale_encoder_to_unit_reconstruction(silent) == 0);
  CHECK(silent.W_enc() == start);
  CHECK_THROWS_WITH(sae::scale_encoder_to_unit_reconstruction(model, 0, 0),
                    "scale_encoder_to_unit_reconstruction: count = 0 is below 1 row");
}

TEST_CASE("the decoder norm with the least initial error", "[training][data_initialization]") {
  const Dense x = random_rows(200, 6, 4, 1);
  for (const bool tied : {true, false})
    for (const bool center : {true, false}) {
      CAPTURE(tied, center);
      Model<sae::TopK> model(6, 30, {.k = 4});
      const Dense directions = model.W_dec(), encoder = model.W_enc();
      const sae::DecoderNormSearch options{.tie_encoder = tied, .encoder_factor = 0.7, .center = center};
      const double norm = sae::search_decoder_norm(model, x, options);
      CHECK(relative_error(model.W_dec(), norm * directions) <= 1e-12);
      if (tied) {
        CHECK(relative_error(model.W_enc(), 0.7 * norm * directions) <= 1e-12);
      } else {
        CHECK(model.W_enc() == encoder);
      }
      // The naive search over the same norms, by reconstruct.
      const auto error = [&](double n) {
        Model<sae::TopK> at(6, 30, {.k = 4});
        at.parameters().W_dec.map() = n * directions;
        at.parameters().W_enc.map() = tied ? Dense(0.7 * n * directions) : encoder;
        if (center) sae::center_pre_activations(at, x);
        return (at.reconstruct(x) - x).squaredNorm() / 200;
      };
      double coarse = 0, fine = 0, least = 1e300;
      for (int i = 1; i <= 50; ++i)
        if (const double e = error(0.1 * i); e < least) least = e, coarse = 0.1 * i;
      least = 1e300;
      for (int i = 0; i < 20; ++i)
        if (const double e = error(coarse - 0.09 + 0.01 * i); e < least) least = e, fine = coarse - 0.09 + 0.01 * i;
      CHECK(norm == Approx(fine).epsilon(1e-9));
      CHECK(model.loss(x).reconstruction == Approx(least).epsilon(1e-9));
      CHECK(norm > 0.1);
      CHECK(norm < 5);
    }
}

TEST_CASE("decoder rows are projected onto the directions in which the data vary", "[training][data_initialization]") {
  // Rows in a plane of R^5, with a mean outside of it.
  const Dense plane = (Dense(2, 5) << 1, 2, 0, -1, 0.5, 0, 1, 3, 1, -2).finished();
  Dense x = random_rows(60, 2, 6, 1) * plane;
  x.rowwise() += Eigen::RowVectorXd::Constant(5, 10);
  // Orthonormal basis by Gram-Schmidt.
  const Eigen::RowVectorXd a = plane.row(0).normalized(), b = (plane.row(1) - plane.row(1).dot(a) * a).normalized();
  Model<sae::ReLU> model(5, 30, {}, {.initialization = {.decoder_norm = 0.3}});
  const Dense before = model.W_dec(), encoder = model.W_enc();
  Model<sae::ReLU> untied = model, whole = model;
  sae::project_decoder_on_active_subspace(model, x, 2);
  for (Index i = 0; i < 30; ++i) {
    const Eigen::RowVectorXd want = before.row(i).dot(a) * a + before.row(i).dot(b) * b;
    CHECK((model.W_dec().row(i) - 0.3 * want.normalized()).norm() <= 1e-11);
  }
  CHECK(model.W_enc() == model.W_dec());
  sae::project_decoder_on_active_subspace(untied, x, 2, false);
  CHECK(untied.W_dec() == model.W_dec());
  CHECK(untied.W_enc() == encoder);
  sae::project_decoder_on_active_subspace(whole, random_rows(60, 5, 7), 5);
  CHECK(relative_error(whole.W_dec(), before) <= 1e-13);
  // The one direction of most variance.
  Dense line = 1e-3 * random_rows(50, 5, 8);
  line.col(3) += random_rows(50, 1, 9, 4).col(0);
  sae::project_decoder_on_active_subspace(untied, line, 1);
  for (Index i = 0; i < 30; ++i) CHECK(std::abs(untied.W_dec()(i, 3)) == Approx(0.3).epsilon(1e-6));
}

TEST_CASE("starts that look at data refuse what they cannot read", "[training][data_initialization]") {
  Model<sae::ReLU> model(6, 30);
  const Dense x = random_rows(10, 6, 1);
  const Dense start = model.W_dec();
  CHECK_THROWS_WITH(sae::initialize_from_data(model, x, {.share = 1.5}), "initialize_from_data: share = 1.5 is not in [0, 1]");
  CHECK_THROWS_WITH(sae::initialize_from_data(model, x, {.decoder_norm = 0}),
                    "initialize_from_data: decoder_norm = 0 is not in (0, infinity)");
  CHECK_THROWS_WITH(sae::initialize_from_data(model, random_rows(10, 5, 1)),
                    "initialize_from_data: rows have 5 columns, the model reads 6");
  CHECK_THROWS_WITH(sae::center_pre_activations(model, Dense(0, 6)), "center_pre_activations: there are no rows");
  CHECK_THROWS_WITH(sae::search_decoder_norm(model, x, {.encoder_factor = 0}),
                    "search_decoder_norm: encoder_factor = 0 is not in (0, infinity)");
  for (const Index dimensions : {0, 7})
    CHECK_THROWS_WITH(sae::project_decoder_on_active_subspace(model, x, dimensions),
                      "project_decoder_on_active_subspace: dimensions = " + std::to_string(dimensions) +
                          " is not in [1, 6] (the width of a row)");
  Dense bad = x;
  bad(4, 2) = std::nan("");
  const auto message = [](const std::string& who) {
    return who + ": row 4 holds a number that is not finite (NaN or infinity)";
  };
  CHECK_THROWS_WITH(sae::initialize_from_data(model, bad), message("initialize_from_data"));
  CHECK_THROWS_WITH(sae::center_pre_activations(model, bad), message("center_pre_activations"));
  CHECK_THROWS_WITH(sae::search_decoder_norm(model, bad), message("search_decoder_norm"));
  CHECK_THROWS_WITH(sae::project_decoder_on_active_subspace(model, bad, 2), message("project_decoder_on_active_subspace"));
  CHECK(model.W_dec() == start);
}

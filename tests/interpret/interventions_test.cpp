#include <sae/interpret/interventions.hpp>

#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/core/random.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/temporal_sae.hpp>

#include <cmath>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {
constexpr Index width = 12, latents = 40;
const Site site{3, SiteKind::residual};

Matrix<float> some_rows(Index count, std::uint64_t seed = 7) {
  Random random(seed);
  Matrix<float> x(count, width);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(random.normal());
  return x;
}
/// A TopK model with random weights whose directions are no unit vectors.
template <class Scalar = float>
auto some_model() {
  SparseAutoencoder<Dynamic, Dynamic, TopK, Scalar> model(width, latents, TopK{.k = 5});
  Random random(1);
  for (Index i = 0; i < model.W_dec().size(); ++i) {
    model.W_dec().data()[i] = static_cast<Scalar>(0.4 * random.normal());
    model.W_enc().data()[i] = static_cast<Scalar>(0.5 * random.normal());
  }
  for (Index j = 0; j < width; ++j) model.parameters().b_dec[j] = static_cast<Scalar>(0.1 * random.normal());
  return model;
}
Matrix<float> after(const Tap& tap, Matrix<float> x, Index first = 0) {
  REQUIRE(tap.edits);
  REQUIRE(tap.site == site);
  tap.visit(MatrixMap<float>(x.data(), x.rows(), x.cols()), first);
  return x;
}
/// A latent that is active in some rows and not in others.
template <class Scalar>
Index mixed_latent(const Codes<Scalar>& codes) {
  for (Index i = 0; i < codes.latents(); ++i) {
    Index active = 0;
    for (Index b = 0; b < codes.rows(); ++b) active += codes.coefficient(b, i) > 0;
    if (active > 1 && active < codes.rows() - 1) return i;
  }
  FAIL("no latent is active in some rows only");
  return 0;
}
// x and the sum of a few directions, in float.
constexpr float tolerance = 16 * std::numeric_limits<float>::epsilon();
}  // namespace

TEST_CASE("with the error term an edit of nothing changes no bit", "[interpret]") {
  const auto model = some_model();
  const Matrix<float> x = some_rows(20);
  CHECK(after(edit_latents(site, model, {}), x) == x);
  const Index latent = mixed_latent(model.encode(x));
  CHECK(after(edit_latents(site, model, {scale_latent(latent, 1)}), x) == x);
  CHECK(after(edit_latents(site, model, {scale_latent(latent, 2)}, EditedRows::at({})), x) == x);
  CHECK(after(steer_latent(site, model, latent, 0), x) == x);
  const Matrix<float> other = after(edit_latents(site, model, {scale_latent(latent, 2)}), x);
  CHECK(other != x);
  const Codes<float> codes = model.encode(x);
  for (Index b = 0; b < x.rows(); ++b) CHECK((other.row(b) == x.row(b)) == (codes.coefficient(b, latent) == 0));
}

TEST_CASE("without the error term an edit is the decoding of the edited codes", "[interpret]") {
  const auto model = some_model();
  const Matrix<float> x = some_rows(20);
  const Codes<float> codes = model.encode(x);
  const Index latent = mixed_latent(codes);
  CHECK(after(replace_by_reconstruction(site, model), x) == model.reconstruct(x));
  CHECK(after(edit_latents(site, model, {}, {}, ErrorTerm::drop), x) == model.reconstruct(x));

  Matrix<float> dense = codes.dense();
  dense.col(latent).setZero();
  const Matrix<float> ablated = after(edit_latents(site, model, {ablate_latent(latent)}, {}, ErrorTerm::drop), x);
  CHECK(ablated == model.decode(Batch<float>(dense)));
  dense.col(latent).setConstant(3);
  const Matrix<float> clamped = after(edit_latents(site, model, {clamp_latent(latent, 3)}, {}, ErrorTerm::drop), x);
  CHECK(clamped == model.decode(Batch<float>(dense)));
}

TEST_CASE("with the error term an edit moves x along the changed directions alone", "[interpret]") {
  const auto model = some_model();
  const Matrix<float> x = some_rows(20);
  const Codes<float> codes = model.encode(x);
  const Index first = mixed_latent(codes), second = (first + 7) % latents;
  const Matrix<float> edited = after(edit_latents(site, model, {clamp_latent(second, 2.5), ablate_latent(first)}), x);
  for (Index b = 0; b < x.rows(); ++b) {
    const RowVector<float> expected = x.row(b) - codes.coefficient(b, first) * model.W_dec().row(first) +
                                      (2.5F - codes.coefficient(b, second)) * model.W_dec().row(second);
    CHECK((edited.row(b) - expected).norm() <= tolerance * expected.norm());
  }
  // Ablation with the error term = x minus what the latent wrote; reconstruction + error gives the same.
  const Matrix<float> error = x - model.reconstruct(x);
  const Matrix<float> dropped =
      after(edit_latents(site, model, {clamp_latent(second, 2.5), ablate_latent(first)}, {}, ErrorTerm::drop), x);
  CHECK((edited - (dropped + error)).norm() <= tolerance * edited.norm());
}

TEST_CASE("a direction is added at every row, or at the chosen ones", "[interpret]") {
  const auto model = some_model();
  const Matrix<float> x = some_rows(6);
  const Matrix<float> everywhere = after(steer_latent(site, model, 4, -2), x);
  for (Index b = 0; b < x.rows(); ++b)
    CHECK((everywhere.row(b) - (x.row(b) - 2 * model.W_dec().row(4))).norm() <= tolerance * x.row(b).norm());

  const auto changed_by = [&](const Tap& tap, Index first) {
    const Matrix<float> y = after(tap, x, first);
    std::vector<Index> rows;
    for (Index b = 0; b < x.rows(); ++b)
      if (y.row(b) != x.row(b)) rows.push_back(b);
    return rows;
  };
  using Rows = std::vector<Index>;
  CHECK(changed_by(steer_latent(site, model, 4, 1, EditedRows::after_first()), 0) == Rows{1, 2, 3, 4, 5});
  CHECK(changed_by(steer_latent(site, model, 4, 1, EditedRows::after_first()), 10) == Rows{0, 1, 2, 3, 4, 5});
  CHECK(changed_by(steer_latent(site, model, 4, 1, EditedRows::at({12, 3, 14})), 10) == Rows{2, 4});
  CHECK(changed_by(steer_latent(site, model, 4, 1, EditedRows::at({2, 0, 5}).but_from(1)), 0) == Rows{2, 5});
  CHECK(changed_by(replace_by_zero(site, EditedRows::from(4)), 0) == Rows{4, 5});
  CHECK(changed_by(replace_by_row(site, RowVector<float>::Constant(width, 2), EditedRows::at({1})), 0) == Rows{1});
  CHECK(changed_by(replace_by_reconstruction(site, model, EditedRows::after_first()), 0) == Rows{1, 2, 3, 4, 5});
  CHECK(changed_by(edit_latents(site, model, {clamp_latent(0, 9)}, EditedRows::after_first()), 0) == Rows{1, 2, 3, 4, 5});
}

TEST_CASE("zeros and a given row replace x", "[interpret]") {
  const Matrix<float> x = some_rows(3);
  CHECK(after(replace_by_zero(site), x).isZero(0));
  const RowVector<float> row = some_rows(1, 9);
  const Matrix<float> replaced = after(replace_by_row(site, row), x);
  for (Index b = 0; b < 3; ++b) CHECK(replaced.row(b) == row);
}

TEST_CASE("edited codes keep the other entries and their order", "[interpret]") {
  Codes<double> codes(8);
  codes.push(1, 0.5), codes.push(4, 2.0), codes.finish_row();
  codes.finish_row();
  const Codes<double> out = edit_codes(codes, {clamp_latent(6, 3), scale_latent(4, -1), clamp_latent(0, 1), ablate_latent(5)});
  Matrix<double> expected = Matrix<double>::Zero(2, 8);
  expected.row(0) << 1, 0.5, 0, 0, -2, 0, 3, 0;
  expected.row(1) << 1, 0, 0, 0, 0, 0, 3, 0;
  CHECK(out.dense() == expected);
  CHECK(out == Codes<double>::from_dense(Batch<double>(expected)));
}

TEST_CASE("a model in double edits the float rows of a language model", "[interpret]") {
  const auto model = some_model<double>();
  const Matrix<float> x = some_rows(9);
  const Matrix<double> expected = model.reconstruct(x.cast<double>().eval());
  CHECK(after(replace_by_reconstruction(site, model), x) == expected.cast<float>());
  CHECK(after(edit_latents(site, model, {}), x) == x);
}

namespace {
// Models that are not what LatentModel asks for, and one that is.
template <class W>
struct Directions {
  Index d_in() const { return 3; }
  Index latents() const { return 6; }
  W W_dec() const;
};
static_assert(LatentModel<Directions<const Matrix<float>&>>);
static_assert(LatentModel<Directions<ConstMatrixMap<float>>>);
static_assert(!LatentModel<Directions<const Eigen::MatrixXf&>>, "column-major");
static_assert(!LatentModel<Directions<Matrix<float>>>, "gone when the call is over");
static_assert(!LatentModel<Directions<Eigen::Map<const Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, 2>>>>, "not contiguous");

template <class Model>
concept Replaces = requires(Model&& model) {
  replace_by_reconstruction(site, std::forward<Model>(model));
};
template <class Model>
concept Edits = requires(Model&& model) {
  edit_latents(site, std::forward<Model>(model), {});
};
using Some = decltype(some_model());
static_assert(Replaces<const Some&> && Edits<Some&>);
static_assert(!Replaces<Some> && !Edits<Some>, "the tap would outlive the model");
}  // namespace

TEST_CASE("edits that cannot be are refused in one sentence", "[interpret]") {
  const auto model = some_model();
  CHECK_THROWS_WITH(steer_latent(site, model, 40, 1), ContainsSubstring("latent 40 is not in [0, 40)"));
  CHECK_THROWS_WITH(edit_latents(site, model, {ablate_latent(-1)}), ContainsSubstring("latent -1 is not in [0, 40)"));
  CHECK_THROWS_WITH(edit_latents(site, model, {ablate_latent(3), clamp_latent(3, 1)}), ContainsSubstring("edited twice"));
  CHECK_THROWS_AS(edit_latents(site, model, {clamp_latent(3, std::nan(""))}), ValueError);
  CHECK_THROWS_AS(EditedRows::at({2, -1}), ValueError);
  Matrix<float> narrow(2, width - 1);
  CHECK_THROWS_AS(replace_by_reconstruction(site, model).visit(MatrixMap<float>(narrow.data(), 2, width - 1), 0), ShapeError);
  CHECK_THROWS_AS(steer_latent(site, model, 1, 1).visit(MatrixMap<float>(narrow.data(), 2, width - 1), 0), ShapeError);
  CHECK_THROWS_WITH(edit_latents(site, model, {}).visit(MatrixMap<float>(narrow.data(), 2, width - 1), 0),
                    ContainsSubstring("residual-3"));
}

TEST_CASE("a SAE that reads sequences is shown whole ones, whichever rows are edited", "[interpret][temporal]") {
  TemporalParameters<float> p;
  p.resize(width, latents, 1, latents / 4, false);
  Random random(3);
  TemporalParameters<float>::visit(
      [&](std::string_view, auto& tensor) {
        for (Index i = 0; i < tensor.size(); ++i) tensor[i] = static_cast<float>(random.normal());
      },
      p);
  const TemporalSae<float> model(std::move(p), {.heads = 2, .k = 6, .input_scale = 0.5});
  static_assert(LatentModel<TemporalSae<float>>);
  const Matrix<float> x = some_rows(9), reconstructed = model.reconstruct(x);
  const Matrix<float> replaced = after(replace_by_reconstruction(site, model, EditedRows::after_first()), x);
  CHECK(replaced.row(0) == x.row(0));
  CHECK(replaced.bottomRows(8) == reconstructed.bottomRows(8));
  CHECK(replaced.bottomRows(8) != model.reconstruct(x.bottomRows(8)));
  CHECK(after(replace_by_reconstruction(site, model, EditedRows::at({})), x) == x);

  const Codes<float> codes = model.encode(x);
  const Index latent = mixed_latent(codes);
  const Matrix<float> dropped =
      after(edit_latents(site, model, {ablate_latent(latent)}, EditedRows::from(2), ErrorTerm::drop), x);
  CHECK(dropped.topRows(2) == x.topRows(2));
  CHECK(dropped.bottomRows(7) == model.decode(edit_codes(codes, {ablate_latent(latent)}), x).bottomRows(7));
  const Matrix<float> kept = after(edit_latents(site, model, {clamp_latent(latent, 3)}, EditedRows::from(2)), x);
  CHECK(kept.topRows(2) == x.topRows(2));
  for (Index b = 2; b < x.rows(); ++b) {
    const RowVector<float> expected = x.row(b) + 2 * (3 - codes.coefficient(b, latent)) * model.W_dec().row(latent);
    CHECK((kept.row(b) - expected).norm() <= tolerance * expected.norm());
  }
  // Rows behind others, as generate shows them, are no sequence.
  Matrix<float> more = x;
  const MatrixMap<float> rows(more.data(), more.rows(), more.cols());
  CHECK_THROWS_WITH(replace_by_reconstruction(site, model).visit(rows, 4),
                    ContainsSubstring("reads whole sequences, and this pass begins at position 4"));
  CHECK_THROWS_AS(edit_latents(site, model, {ablate_latent(1)}).visit(rows, 1), ValueError);
  CHECK(more == x);
  CHECK(after(steer_latent(site, model, latent, 1), x, 4) != x);
}

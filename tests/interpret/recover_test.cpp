#include <sae/interpret/recover.hpp>

#include <sae/activations/relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/temporal_sae.hpp>

#include <cmath>
#include <functional>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {

/// A language model of one layer: its residual row is a table's row of the token, its logits a product with it.
struct TableModel {
  Matrix<float> table, unembedded;  // [V x D] both
  Token first = 0;
  Matrix<float> logits{};

  ModelShape shape() const { return {table.cols(), 1, table.rows(), 64}; }
  std::string name() const { return "table"; }
  Token bos() const { return first; }
  std::vector<Site> sites() const { return {{0, SiteKind::residual}}; }
  std::vector<Token> tokenize(std::string_view text) const {
    std::vector<Token> out;
    for (const char c : text) out.push_back(c - 'a' + 1);
    return out;
  }
  std::string token_text(Token token) const { return std::string(1, static_cast<char>('a' + token - 1)); }
  ConstMatrixMap<float> run(std::span<const Token> tokens, std::span<const Tap> taps = {}, const RunOptions& options = {}) {
    check_run(shape(), tokens, taps, options);
    Matrix<float> x(static_cast<Index>(tokens.size()), table.cols());
    for (Index t = 0; t < x.rows(); ++t) x.row(t) = table.row(tokens[static_cast<std::size_t>(t)]);
    for (const Tap& tap : taps) tap.visit({x.data(), x.rows(), x.cols()}, options.first_position);
    logits = x * unembedded.transpose();
    return {logits.data(), options.logits == Logits::none ? 0 : logits.rows(), logits.cols()};
  }
  Matrix<float> unembedding() const { return unembedded; }
};
static_assert(LanguageModel<TableModel>);

constexpr Index width = 6, vocabulary = 8;
const Site site{0, SiteKind::residual};

Matrix<float> random_matrix(Index rows, Index cols, std::uint64_t seed) {
  Random random(seed);
  Matrix<float> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(random.normal());
  return out;
}
/// Expects the next letter of the alphabet. BOS and the token "g" are attention sinks: huge, along a coordinate that no logit reads.
TableModel some_model() {
  TableModel model{random_matrix(vocabulary, width, 1), random_matrix(vocabulary, width, 2)};
  for (Token token = 1; token < 6; ++token) model.unembedded.row(token + 1) = 0.7F * model.table.row(token);
  model.table.row(0) = 1000 * RowVector<float>::Unit(width, width - 1);
  model.table.row(7) = 200 * RowVector<float>::Unit(width, width - 1);
  model.unembedded.col(width - 1).setZero();
  return model;
}
auto some_sae() {
  SparseAutoencoder sae(width, 10, ReLU{});
  sae.W_enc() = random_matrix(10, width, 3);
  sae.W_dec() = 0.3F * random_matrix(10, width, 4);
  for (Index j = 0; j < width; ++j) sae.parameters().b_dec[j] = 0.25F;
  return sae;
}
const std::string text = "abcdefabcdefbcdeffabcdefabgabcdbcdefcdefab";  // 42 tokens, one "g" (token 7)

/// Mean cross-entropy and KL by the definitions, in double.
struct ByHand {
  double cross_entropy = 0, kl = 0;
  Index tokens = 0;
};
ByHand by_hand(const TableModel& model, const Windows& windows, const std::function<void(Matrix<float>&)>& edit) {
  ByHand out;
  for (Index w = 0; w < windows.count(); ++w) {
    const auto tokens = windows[w];
    Matrix<float> x(windows.context(), width);
    for (Index t = 0; t < x.rows(); ++t) x.row(t) = model.table.row(tokens[static_cast<std::size_t>(t)]);
    const Matrix<double> p = (x * model.unembedded.transpose()).eval().cast<double>();
    edit(x);
    const Matrix<double> q = (x * model.unembedded.transpose()).eval().cast<double>();
    for (Index t = 0; t + 1 < x.rows(); ++t) {
      const auto log_softmax = [t](const Matrix<double>& z) {
        const Eigen::RowVectorXd shifted = z.row(t).array() - z.row(t).maxCoeff();
        return Eigen::RowVectorXd(shifted.array() - std::log(shifted.array().exp().sum()));
      };
      const Eigen::RowVectorXd log_p = log_softmax(p), log_q = log_softmax(q);
      out.cross_entropy -= log_q[tokens[static_cast<std::size_t>(t) + 1]];
      out.kl += (log_p.array().exp() * (log_p - log_q).array()).sum();
      ++out.tokens;
    }
  }
  out.cross_entropy /= static_cast<double>(out.tokens);
  out.kl /= static_cast<double>(out.tokens);
  return out;
}
}  // namespace

TEST_CASE("the four cross-entropies are those by hand, with BOS kept and replaced", "[interpret]") {
  TableModel model = some_model();
  const auto sae = some_sae();
  const Windows windows = cut_windows(model, text, {.context = 7, .tokens = 0});
  REQUIRE(windows.count() == 7);
  const bool replace_bos = GENERATE(false, true);
  const RecoverReport report = recover(model, windows, site, sae, {.replace_bos = replace_bos});

  // The mean of the rows that collect keeps: no BOS, not the token with the huge norm.
  Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(width);
  Index kept = 0;
  for (Index w = 0; w < windows.count(); ++w)
    for (const Token token : windows[w].subspan(1))
      if (token != 7) mean += model.table.row(token).cast<double>(), ++kept;
  mean /= static_cast<double>(kept);
  CHECK((report.mean_row.cast<double>() - mean).norm() < 1e-6);
  CHECK(report.rows == CollectCounts{41, 7, 1, 0});
  CHECK(report.replaces_bos == replace_bos);
  CHECK(report.tokens == 7 * 6);

  const Index first = replace_bos ? 0 : 1;
  const ByHand clean = by_hand(model, windows, [](Matrix<float>&) {});
  const ByHand spliced = by_hand(model, windows, [&](Matrix<float>& x) {
    const Matrix<float> reconstructed = sae.reconstruct(x);
    for (Index t = first; t < x.rows(); ++t) x.row(t) = reconstructed.row(t);
  });
  const ByHand zero = by_hand(model, windows, [&](Matrix<float>& x) { x.bottomRows(x.rows() - first).setZero(); });
  const ByHand ablated = by_hand(model, windows, [&](Matrix<float>& x) {
    for (Index t = first; t < x.rows(); ++t) x.row(t) = mean.cast<float>();
  });
  CHECK(report.cross_entropy.clean == Approx(clean.cross_entropy).epsilon(1e-6));
  CHECK(report.cross_entropy.sae == Approx(spliced.cross_entropy).epsilon(1e-5));
  CHECK(report.cross_entropy.zero == Approx(zero.cross_entropy).epsilon(1e-6));
  CHECK(report.cross_entropy.mean == Approx(ablated.cross_entropy).epsilon(1e-6));
  CHECK(report.kl == Approx(spliced.kl).epsilon(1e-4));
  if (replace_bos) CHECK(std::abs(report.cross_entropy.zero - std::log(static_cast<double>(vocabulary))) < 1e-12);

  const double c = report.cross_entropy.clean, s = report.cross_entropy.sae;
  REQUIRE(c < report.cross_entropy.zero);
  REQUIRE(c < report.cross_entropy.mean);
  CHECK(report.loss_recovered.zero == (report.cross_entropy.zero - s) / (report.cross_entropy.zero - c));
  CHECK(report.loss_recovered.mean == (report.cross_entropy.mean - s) / (report.cross_entropy.mean - c));
}

TEST_CASE("explained variance and L0 are of the kept rows", "[interpret]") {
  TableModel model = some_model();
  const auto sae = some_sae();
  const Windows windows = cut_windows(model, text, {.context = 7, .tokens = 0});
  const auto figures_by_hand = [&](bool with_sink) {
    std::vector<Token> tokens;
    for (Index w = 0; w < windows.count(); ++w)
      for (const Token token : windows[w].subspan(1))
        if (with_sink || token != 7) tokens.push_back(token);
    Matrix<double> x(static_cast<Index>(tokens.size()), width);
    for (Index b = 0; b < x.rows(); ++b) x.row(b) = model.table.row(tokens[static_cast<std::size_t>(b)]).cast<double>();
    const Matrix<float> rows = x.cast<float>();
    const Matrix<double> error = x - sae.reconstruct(rows).cast<double>();
    const double n = static_cast<double>(x.rows());
    const double spread = x.squaredNorm() / n - x.colwise().mean().squaredNorm();
    const Codes<float> codes = sae.encode(rows);
    Index active = 0;
    for (const float f : codes.values()) active += f != 0;
    return std::pair{1 - error.squaredNorm() / n / spread, static_cast<double>(active) / n};
  };
  const auto [variance, l0] = figures_by_hand(false);
  const RecoverReport filtered = recover(model, windows, site, sae);
  CHECK(filtered.figures.explained_variance == Approx(variance).epsilon(1e-5));
  CHECK(filtered.figures.l0 == Approx(l0).epsilon(1e-12));
  const RecoverReport all = recover(model, windows, site, sae, {.max_norm = 0});
  CHECK(all.rows == CollectCounts{42, 7, 0, 0});
  CHECK(all.figures.explained_variance == Approx(figures_by_hand(true).first).epsilon(1e-5));
  CHECK(all.cross_entropy.sae == filtered.cross_entropy.sae);
}

TEST_CASE("a given mean row is used, progress counts both passes", "[interpret]") {
  TableModel model = some_model();
  const auto sae = some_sae();
  const Windows windows = cut_windows(model, text, {.context = 7, .tokens = 0});
  std::vector<Index> seen;
  RecoverOptions options;
  options.mean_row = RowVector<float>::Zero(width);
  const RecoverReport report = recover(model, windows, site, sae, options, [&](Index done) { seen.push_back(done); });
  CHECK(report.cross_entropy.mean == report.cross_entropy.zero);
  CHECK(report.mean_row == options.mean_row);
  REQUIRE(seen.size() >= 8);
  CHECK(seen.back() == 14);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
}

TEST_CASE("a model without BOS has every row replaced", "[interpret]") {
  TableModel model = some_model();
  model.first = no_token;
  const Windows windows = cut_windows(model, text, {.context = 7, .tokens = 0});
  const RecoverReport report = recover(model, windows, site, some_sae());
  CHECK(report.replaces_bos);
  CHECK(report.rows.bos == 0);
  CHECK(std::abs(report.cross_entropy.zero - std::log(static_cast<double>(vocabulary))) < 1e-12);
}

TEST_CASE("several SAEs at once have the figures that each has alone", "[interpret]") {
  TableModel model = some_model();
  using Sae = decltype(some_sae());
  std::vector<Sae> saes{some_sae(), some_sae(), some_sae()};
  saes[1].W_dec() *= 2;
  saes[2].W_dec().setZero();
  const Windows windows = cut_windows(model, text, {.context = 7, .tokens = 0});
  Index runs = 0;
  const std::vector<RecoverReport> together =
      recover_each(model, windows, site, std::span<const Sae>(saes), {}, [&](Index done) { runs = done; });
  CHECK(runs == 2 * windows.count());
  REQUIRE(together.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const RecoverReport alone = recover(model, windows, site, saes[i]);
    CHECK(together[i].cross_entropy.clean == alone.cross_entropy.clean);
    CHECK(together[i].cross_entropy.sae == alone.cross_entropy.sae);
    CHECK(together[i].cross_entropy.zero == alone.cross_entropy.zero);
    CHECK(together[i].cross_entropy.mean == alone.cross_entropy.mean);
    CHECK(together[i].loss_recovered.mean == alone.loss_recovered.mean);
    CHECK(together[i].kl == alone.kl);
    CHECK(together[i].figures.explained_variance == alone.figures.explained_variance);
    CHECK(together[i].figures.l0 == alone.figures.l0);
    CHECK(together[i].mean_row == alone.mean_row);
    CHECK((together[i].rows == alone.rows && together[i].tokens == alone.tokens));
  }
  CHECK(together[0].cross_entropy.sae != together[1].cross_entropy.sae);
  CHECK_THROWS_WITH(recover_each(model, windows, site, std::span<const Sae>()), ContainsSubstring("there is no SAE"));
}

TEST_CASE("widths that do not fit are refused", "[interpret]") {
  TableModel model = some_model();
  const Windows windows = cut_windows(model, text, {.context = 7, .tokens = 0});
  const SparseAutoencoder narrow(width - 1, 10, ReLU{});
  CHECK_THROWS_WITH(recover(model, windows, site, narrow), ContainsSubstring("the SAE is of width 5, the model of width 6"));
  RecoverOptions options;
  options.mean_row = RowVector<float>::Zero(width + 1);
  CHECK_THROWS_AS(recover(model, windows, site, some_sae(), options), ShapeError);
}

TEST_CASE("a SAE that reads sequences is shown each window whole, and measured on the kept rows", "[interpret][temporal]") {
  TableModel model = some_model();
  TemporalParameters<float> p;
  p.resize(width, 10, 1, 10, true);
  std::uint64_t seed = 20;
  TemporalParameters<float>::visit(
      [&](std::string_view, auto& tensor) { tensor.map() = random_matrix(tensor.rows(), tensor.cols(), seed++); }, p);
  const TemporalSae<float> sae(std::move(p), {.heads = 2, .k = 3, .input_scale = 0.1});
  const Windows windows = cut_windows(model, text, {.context = 7, .tokens = 0});
  const RecoverReport report = recover(model, windows, site, sae);
  CHECK(report.rows == CollectCounts{41, 7, 1, 0});
  CHECK(report.mean_row == recover(model, windows, site, some_sae()).mean_row);
  const ByHand spliced = by_hand(model, windows, [&](Matrix<float>& x) {
    const Matrix<float> reconstructed = sae.reconstruct(x);
    x.bottomRows(x.rows() - 1) = reconstructed.bottomRows(x.rows() - 1);
  });
  CHECK(report.cross_entropy.sae == Approx(spliced.cross_entropy).epsilon(1e-5));
  double error = 0, squares = 0, n = 0;
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(width);
  for (Index w = 0; w < windows.count(); ++w) {
    Matrix<float> x(windows.context(), width);
    for (Index t = 0; t < x.rows(); ++t) x.row(t) = model.table.row(windows[w][static_cast<std::size_t>(t)]);
    const Matrix<float> reconstructed = sae.reconstruct(x);
    for (Index t = 1; t < x.rows(); ++t) {
      if (windows[w][static_cast<std::size_t>(t)] == 7) continue;
      error += (x.row(t) - reconstructed.row(t)).cast<double>().squaredNorm();
      squares += x.row(t).cast<double>().squaredNorm();
      sum += x.row(t).cast<double>();
      ++n;
    }
  }
  CHECK(report.figures.explained_variance == Approx(1 - error / (squares - sum.squaredNorm() / n)).epsilon(1e-5));
}

// The loss and every gradient of sparsify at one batch, in double. What its fused encoder drops is dropped here by a term of this
// file, and what ours gives stands beside it.
#include <sae/activations/group_max.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/models/transcoder.hpp>
#include <sae/training/aux_k.hpp>
#include <sae/training/multi_topk.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "gradient_check.hpp"
#include "peer_fixture.hpp"

namespace {

using sae::Index;
using namespace sae_test;

/// A term whose gradient does not reach the encoder: sparsify's fused encoder never reads the gradient of the pre-activations.
template <class Term>
struct DecoderOnly {
  Term term;
  static constexpr std::string_view name = Term::name;
  void check(Index d_in, Index latents) const { term.check(d_in, latents); }
  bool needs_decoder_norms() const { return term.needs_decoder_norms(); }
  template <class Scalar>
  struct Selection : Term::template Selection<Scalar> {
    template <class Step>
    bool begin(const DecoderOnly& outer, const Step& step, Index blocks, Index block_rows) {
      return Term::template Selection<Scalar>::begin(outer.term, step, blocks, block_rows);
    }
  };
  template <class Step>
  double apply(Step& step, Selection<typename Step::Scalar>& selection, sae::Threads& threads) const {
    const double value = term.apply(step, selection, threads);
    auto& path = *step.extra[step.extra_used - 1];
    std::fill(path.dz.begin(), path.dz.end(), typename Step::Scalar(0));
    return value;
  }
};

template <class Parameters>
void load(const PeerRun& run, const std::string& when, Parameters& p) {
  p.W_enc = run.tensor(when, "encoder.weight", false);
  p.b_enc = run.tensor(when, "encoder.bias", false);
  p.W_dec = run.tensor(when, "W_dec", false);
  p.b_dec = run.tensor(when, "b_dec", false);
  if (p.W_skip.size() > 0) p.W_skip = run.tensor(when, "W_skip", false);
}
template <class Gradient>
void require_same(const PeerRun& run, const Gradient& got) {
  const double want = run.expected.at("trace")[0].at("loss").template get<double>();
  REQUIRE(std::abs(got.loss.total - want) <= 1e-9 * want);
  auto expected = got.parameters;
  load(run, "grad", expected);
  decltype(expected)::visit(
      [](std::string_view name, const auto& a, const auto& b) {
        CAPTURE(name);
        REQUIRE(relative_error(a.map(), b.map()) <= 1e-9);
      },
      got.parameters, expected);
}

const sae::SquaredError fvu{.normaliser = sae::ErrorNormaliser::target_variance};

template <class Terms>
auto gradient_of(const PeerRun& run, const Terms& objective) {
  using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, double>;
  Model model(run.d_in, run.latents, {.k = 6});
  load(run, "init", model.parameters());
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(run.latents), 0);
  for (const auto& i : run.expected.at("initially_dead")) dead[i.get<std::size_t>()] = 1;
  typename Model::template Workspace<Terms> workspace;
  workspace.step.dead = dead;
  return model.gradient(run.x, objective, workspace);
}

}  // namespace

TEST_CASE("sparsify's gradients: TopK, fraction of variance unexplained", "[training][peers]") {
  const PeerRun run("sparsify_topk");
  require_same(run, gradient_of(run, sae::Objective{fvu}));
}

TEST_CASE("sparsify's gradients: AuxK over the target's variance, without what it drops", "[training][peers]") {
  const PeerRun run("sparsify_topk_auxk");
  const sae::AuxK aux{.coefficient = 0.25, .normaliser = sae::AuxKNormaliser::target_variance};
  const auto dropped = gradient_of(run, sae::Objective{fvu, DecoderOnly<sae::AuxK>{aux}});
  require_same(run, dropped);
  REQUIRE(dropped.loss.terms.size() == 2);
  const auto& want = run.expected.at("trace")[0].at("losses");
  CHECK(dropped.loss.terms[0].second == Approx(want.at("fvu").get<double>()).epsilon(1e-12));
  CHECK(dropped.loss.terms[1].second == Approx(0.25 * want.at("auxk_loss").get<double>()).epsilon(1e-12));
  // Ours reaches the encoder rows of the dead, too: that is what brings them back.
  const auto ours = gradient_of(run, sae::Objective{fvu, aux});
  CHECK(ours.loss.total == dropped.loss.total);
  CHECK(ours.parameters.W_dec == dropped.parameters.W_dec);
  CHECK(relative_error(ours.parameters.W_enc.map().topRows(36), dropped.parameters.W_enc.map().topRows(36)) <= 1e-13);
  CHECK(dropped.parameters.W_enc.map().bottomRows(20).squaredNorm() <
        0.5 * ours.parameters.W_enc.map().bottomRows(20).squaredNorm());
}

TEST_CASE("sparsify's gradients: Multi-TopK, without what it drops", "[training][peers]") {
  const PeerRun run("sparsify_multi_topk");
  const sae::MultiTopK multi{.k = 6};
  const auto dropped = gradient_of(run, sae::Objective{fvu, DecoderOnly<sae::MultiTopK>{multi}});
  require_same(run, dropped);
  CHECK(dropped.loss.terms[1].second ==
        Approx(run.expected.at("trace")[0].at("losses").at("multi_topk_fvu").get<double>() / 8).epsilon(1e-12));
  const auto ours = gradient_of(run, sae::Objective{fvu, multi});
  CHECK(ours.loss.total == dropped.loss.total);
  CHECK(ours.parameters.W_dec == dropped.parameters.W_dec);
  CHECK(relative_error(ours.parameters.W_enc.map(), dropped.parameters.W_enc.map()) > 1e-3);
}

TEST_CASE("sparsify's gradients: a transcoder of GroupMax with a skip", "[training][peers]") {
  const PeerRun run("sparsify_groupmax_transcode_skip");
  const sae::NpyArray file(run.folder / "y.npy");
  const auto values = file.values<double>();
  const Dense y = sae::ConstMatrixMap<double>(values.data(), run.rows, 24);
  // The peer sends gradient to groups whose largest is below 0, too.
  sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::GroupMax, double> model(
      24, 24, 56, sae::GroupMax{.k = 8, .gradient_where_zero = true}, {.skip = true});
  load(run, "init", model.parameters());
  require_same(run, model.gradient(run.x, y, sae::Objective{fvu}));
}

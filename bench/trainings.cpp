#include "trainings.hpp"

#include <sae/sae.hpp>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

namespace sae_bench {
namespace {

template <class Model, class Terms>
class TrainingOf final : public Training {
 public:
  TrainingOf(Model model, const Terms& objective, sae::TrainerConfig config, const Size& size, sae::Threads& threads)
      : model_(std::move(model)), trainer_(model_, fixed(config, size), objective, threads), batch_(size.B) {
    rows_ = &rows(batches * batch_, trainer_.row_width());
  }
  double step(bool report) override {
    const Index first = at_++ % batches * batch_;
    return trainer_.train_step(sae::Batch<float>(rows_->middleRows(first, batch_)), report).l0;
  }
  Index state_bytes() override {
    Index bytes = trainer_.optimizer_bytes();
    Model::Parameters::visit(
        [&](std::string_view, const auto& tensor) { bytes += tensor.size() * static_cast<Index>(sizeof(tensor[0])); },
        model_.parameters());
    return bytes;
  }

 private:
  static sae::TrainerConfig fixed(sae::TrainerConfig config, const Size& size) {
    config.tokens = 0;
    config.steps = 1'000'000;
    config.batch = size.B;
    config.sparsity_warmup = 0;
    return config;
  }
  Model model_;
  sae::Trainer<Model, Terms> trainer_;
  const Matrix<float>* rows_ = nullptr;
  Index batch_, at_ = 0;
};
template <class Model, class Terms>
std::unique_ptr<Training> make(Model model, const Terms& objective, const sae::TrainerConfig& config, const Size& size,
                               sae::Threads& threads) {
  return std::make_unique<TrainingOf<Model, Terms>>(std::move(model), objective, config, size, threads);
}
template <class Activation>
auto autoencoder(const Size& size, Activation activation, sae::ModelOptions options = {}) {
  return sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, Activation>(size.D, size.F, std::move(activation),
                                                                        std::move(options));
}

// The pre-activation that a share of all lies above, for a model as it starts.
template <class Model>
float quantile_above(const Model& model, const Size& size, double share) {
  const Index sample = std::min<Index>(size.B, 256);
  Matrix<float> z = Matrix<float>::Zero(sample, size.F);
  sae::kernels::add_product_nt(z.data(), size.F, rows(batches * size.B, size.D).data(), size.D, model.parameters().W_enc.data(),
                               size.D, sample, size.F, size.D);
  const auto rank = static_cast<Index>(share * static_cast<double>(z.size() - 1));
  std::nth_element(z.data(), z.data() + rank, z.data() + z.size(), std::greater<>());
  return z.data()[rank];
}
// Of how many latents of a row are active. The rate is too small to change that.
std::unique_ptr<Training> at_l0(const std::string& name, double l0, const Size& size, sae::Threads& threads) {
  const sae::TrainerConfig still{.learning_rate = 1e-12};
  const double share = l0 / static_cast<double>(size.F);
  if (name == "relu") {
    auto model = autoencoder(size, sae::ReLU{});
    model.parameters().b_enc.map().setConstant(-quantile_above(model, size, share));
    return make(std::move(model), sae::Objective{sae::L1{}}, still, size, threads);
  }
  if (name == "gated") {
    auto model = autoencoder(size, sae::Gated{});
    model.parameters().activation.b_gate.map().setConstant(-quantile_above(model, size, share));
    return make(std::move(model), sae::Objective{sae::GatedAux{}}, still, size, threads);
  }
  const auto plain = autoencoder(size, sae::ReLU{});
  const double window = std::min(24.0, l0) / static_cast<double>(size.F);
  const float theta = quantile_above(plain, size, share);
  const float width = quantile_above(plain, size, share - window) - quantile_above(plain, size, share + window);
  return make(autoencoder(size, sae::JumpReLU{.threshold = std::max(theta, 0.0F), .bandwidth = width}),
              sae::Objective{sae::L0Penalty{}}, still, size, threads);
}

std::unique_ptr<Training> of_recipe(const std::string& recipe_name, const std::string& activation, const Size& size,
                                    sae::Threads& threads) {
  sae::RecipeProblem problem{.d_in = size.D, .latents = size.F, .steps = 1'000'000, .batch = size.B, .activation = activation};
  const bool selects = activation != "relu" && activation != "jumprelu" && activation != "gated";
  if (selects) problem.k = static_cast<double>(size.k);
  const sae::Recipe recipe = sae::recipe(recipe_name, problem);
  return make(sae::make_model(recipe, size.D, size.F), recipe.objective, recipe.config, size, threads);
}

std::vector<NamedTraining> list() {
  std::vector<NamedTraining> all;
  const auto add = [&](std::string name, auto make_one) { all.push_back({std::move(name), std::move(make_one)}); };
  // An architecture by itself: nothing but the squared error.
  const auto add_plain = [&](const char* name, auto activation_of, auto objective_of, const sae::TrainerConfig& config) {
    add(name, [=](const Size& size, sae::Threads& pool) {
      return make(autoencoder(size, activation_of(size)), objective_of(size), config, size, pool);
    });
  };
  const auto topk = [](const Size& size) { return sae::TopK{.k = size.k}; };
  const auto batch_topk = [](const Size& size) { return sae::BatchTopK{.k = static_cast<double>(size.k)}; };
  const auto error = [](const Size&) { return sae::Objective<>{}; };
  add_plain("topk", topk, error, {});
  add_plain("topk_clipped", topk, error, {.clip_norm = 1});
  add_plain("topk_average", topk, error, {.ema = 0.999});
  add_plain("topk_aux_k", topk, [](const Size&) { return sae::Objective{sae::AuxK{}}; }, {});
  add_plain("batchtopk", batch_topk, error, {});
  add_plain("matryoshka_5", batch_topk,
            [](const Size& size) {
              return sae::Objective{sae::Matryoshka{.widths = {size.F / 16, size.F / 8, size.F / 4, size.F / 2, size.F}}};
            },
            {});
  add_plain("abstopk", [](const Size& size) { return sae::AbsTopK{.k = size.k}; }, error, {});
  add_plain("groupmax", [](const Size& size) { return sae::GroupMax{.k = size.k}; }, error, {});
  add_plain("matching_pursuit", [](const Size& size) { return sae::MatchingPursuit{.max_iterations = size.k}; }, error, {});
  add_plain("glu_topk", [](const Size& size) { return sae::Glu<sae::TopK>{.inner = {.k = size.k}}; }, error, {});
  for (const bool skip : {false, true})
    add(skip ? "transcoder_skip" : "transcoder", [=](const Size& size, sae::Threads& pool) {
      using Model = sae::Transcoder<sae::Dynamic, sae::Dynamic, sae::Dynamic, sae::TopK>;
      return make(Model(size.D, size.D, size.F, topk(size), {.skip = skip}), sae::Objective<>{}, {}, size, pool);
    });
  add("crosscoder", [=](const Size& size, sae::Threads& pool) {
    const Index site = size.D / 2;
    return make(autoencoder(size, topk(size), sae::crosscoder({site, size.D - site})), sae::Objective<>{},
                sae::TrainerConfig{.decoder = sae::DecoderNorm::free}, size, pool);
  });
  for (const char* const name : {"relu", "jumprelu", "gated"})
    for (const int l0 : {64, 256})
      add("l0_" + std::to_string(l0) + "/" + name,
          [=](const Size& size, sae::Threads& pool) { return at_l0(name, l0, size, pool); });
  add("l0_all/relu", [](const Size& size, sae::Threads& pool) {
    auto model = autoencoder(size, sae::ReLU{});
    model.parameters().b_enc.map().setConstant(1e4F);
    return make(std::move(model), sae::Objective{sae::L1{}}, sae::TrainerConfig{.learning_rate = 1e-12}, size, pool);
  });
  const std::pair<const char*, sae::Optimizer> optimizers[] = {{"adam_without_first_moment", sae::Adam{.beta1 = 0}},
                                                               {"adamw", sae::AdamW{}},
                                                               {"sgd", sae::Sgd{}},
                                                               {"sgd_momentum", sae::Sgd{.momentum = 0.9}},
                                                               {"signsgd", sae::SignSgd{}},
                                                               {"signum", sae::SignSgd{.momentum = 0.95}},
                                                               {"schedule_free", sae::ScheduleFree{}},
                                                               {"adafactor", sae::Adafactor{}},
                                                               {"muon", sae::Muon{}}};
  for (const auto& [name, optimizer] : optimizers)
    add(std::string("optimizer/") + name, [=, rule = optimizer](const Size& size, sae::Threads& pool) {
      return make(autoencoder(size, topk(size)), sae::Objective<>{}, sae::TrainerConfig{.optimizer = rule}, size, pool);
    });
  add_plain("moments_bfloat16", topk, error, {.moments = sae::Precision::bfloat16});
  add("all_bfloat16", [=](const Size& size, sae::Threads& pool) {
    using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::TopK, float, sae::bfloat16>;
    return make(Model(size.D, size.F, topk(size)), sae::Objective<>{}, sae::TrainerConfig{.moments = sae::Precision::bfloat16},
                size, pool);
  });
  for (const char* const recipe : {"default", "saelens", "dictionary_learning"})
    for (const auto activation : sae::recipe_activations(recipe))
      add(std::string(recipe) + "/" + std::string(activation),
          [recipe = std::string(recipe), name = std::string(activation)](const Size& size, sae::Threads& pool) {
            return of_recipe(recipe, name, size, pool);
          });
  return all;
}

}  // namespace

const std::vector<NamedTraining>& trainings() {
  static const std::vector<NamedTraining> all = list();
  return all;
}
std::unique_ptr<Training> make_training(std::string_view name, const Size& size, sae::Threads& threads) {
  for (const NamedTraining& one : trainings())
    if (one.name == name) return one.make(size, threads);
  sae::throw_value("there is no training ", name);
}

}  // namespace sae_bench

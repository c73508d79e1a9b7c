// Several models on one stream of rows: each as alone, the rows read once.
#include <sae/data/indexed_source.hpp>
#include <sae/training/recipes.hpp>
#include <sae/training/train_together.hpp>

#include <memory>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;
using Model = sae::SparseAutoencoder<sae::Dynamic, sae::Dynamic, sae::AnyActivation, float>;
using Trainer = sae::Trainer<Model, sae::AnyObjective>;

constexpr Index width = 10, latents = 30, batch = 32;

// Counts the rows that are read.
class Counted {
 public:
  explicit Counted(const sae::Matrix<float>& rows) : inner_(rows, {.seed = 4}) {}
  Index width() const { return inner_.width(); }
  Index next(sae::Tensor<float>& rows) {
    const auto got = static_cast<Index>(inner_.next(rows));
    read += got;
    return got;
  }
  sae::SourceState state() const { return inner_.state(); }
  void restore(const sae::SourceState& state) { inner_.restore(state); }
  Index read = 0;

 private:
  sae::MatrixSource<float> inner_;
};

struct One {
  sae::Recipe recipe;
  std::unique_ptr<Model> model;
  std::unique_ptr<Trainer> trainer;
};
One make(const char* recipe, const char* activation, Index steps, sae::Threads& threads) {
  One one;
  one.recipe = sae::recipe(
      recipe, {.d_in = width, .latents = latents, .steps = steps, .batch = batch, .activation = activation, .k = 3});
  one.recipe.config.statistics_rows = 256;
  one.model = std::make_unique<Model>(sae::make_model(one.recipe, width, latents, 9));
  one.trainer = std::make_unique<Trainer>(*one.model, one.recipe.config, one.recipe.objective, threads);
  return one;
}
bool same(const Model& a, const Model& b) {
  bool equal = true;
  Model::Parameters::visit([&](std::string_view, const auto& x, const auto& y) { equal = equal && x == y; }, a.parameters(),
                           b.parameters());
  return equal;
}

}  // namespace

TEST_CASE("train_together: every model is the one that it would be alone, rows are read once", "[training][together]") {
  const sae::Matrix<float> rows = sae_test::random_rows(700, width, 2).cast<float>();
  sae::Threads threads(2);
  struct Wish {
    const char *recipe, *activation;
    Index steps;
  };
  // Of unequal length; two ways of preparing (scaled and centred, and rows as they are).
  const std::vector<Wish> wishes{
      {"default", "topk", 12}, {"default", "jumprelu", 12}, {"default", "batchtopk", 9}, {"saelens", "topk", 12}};
  std::vector<One> all;
  std::vector<Trainer*> trainers;
  for (const Wish& wish : wishes) all.push_back(make(wish.recipe, wish.activation, wish.steps, threads));
  for (const One& one : all) trainers.push_back(one.trainer.get());
  Counted source(rows);
  std::vector<Index> reports(all.size(), 0);
  const auto status =
      sae::train_together(std::span<Trainer* const>(trainers), source,
                          [&](std::size_t which, const sae::StepReport& report) { CHECK(report.step == ++reports[which]); });
  CHECK(status == sae::FitStatus::finished);
  CHECK(source.read == 256 + 12 * batch);  // ahead once for the three that ask the same, never for the fourth
  for (std::size_t n = 0; n < wishes.size(); ++n) {
    CAPTURE(wishes[n].recipe, wishes[n].activation);
    CHECK(reports[n] == wishes[n].steps);
    One alone = make(wishes[n].recipe, wishes[n].activation, wishes[n].steps, threads);
    Counted again(rows);
    alone.trainer->fit(again);
    CHECK(same(*all[n].model, *alone.model));
    if (n > 0) CHECK_FALSE(all[n].model->parameters().W_dec == all[0].model->parameters().W_dec);
  }
}

TEST_CASE("train_together: other statistics are measured anew", "[training][together]") {
  const sae::Matrix<float> rows = sae_test::random_rows(700, width, 2).cast<float>();
  sae::Threads threads(1);
  One a = make("default", "topk", 8, threads), b = make("default", "topk", 8, threads);
  b.recipe.config.center = sae::Center::geometric_median;
  b.trainer = std::make_unique<Trainer>(*b.model, b.recipe.config, b.recipe.objective, threads);
  std::vector<Trainer*> trainers{a.trainer.get(), b.trainer.get()};
  Counted source(rows);
  sae::train_together(std::span<Trainer* const>(trainers), source, [](std::size_t, const sae::StepReport&) {});
  CHECK(source.read == 2 * 256 + 8 * batch);
  One alone = make("default", "topk", 8, threads);
  alone.recipe.config.center = sae::Center::geometric_median;
  alone.trainer = std::make_unique<Trainer>(*alone.model, alone.recipe.config, alone.recipe.objective, threads);
  Counted again(rows);
  alone.trainer->fit(again);
  CHECK(same(*b.model, *alone.model));
}

TEST_CASE("train_together: stops when asked, ends with the source, refuses what cannot share", "[training][together]") {
  const sae::Matrix<float> rows = sae_test::random_rows(200, width, 2).cast<float>();
  sae::Threads threads(1);
  One a = make("default", "topk", 50, threads), b = make("default", "topk", 50, threads);
  std::vector<Trainer*> trainers{a.trainer.get(), b.trainer.get()};
  Counted source(rows);
  const auto stop_at_three = [](std::size_t which, const sae::StepReport& report) { return which == 0 && report.step == 3; };
  CHECK(sae::train_together(std::span<Trainer* const>(trainers), source, stop_at_three) == sae::FitStatus::stopped);
  CHECK(a.trainer->step() == 3);
  CHECK(b.trainer->step() == 3);
  CHECK(a.trainer->scale() == 1);  // folded: the models read rows as they are
  CHECK(same(*a.model, *b.model));

  const auto nothing = [](std::size_t, const sae::StepReport&) {};
  sae::MatrixSource<float> once(rows, {.shuffle = false, .epochs = 1});
  One c = make("saelens", "topk", 50, threads);
  std::vector<Trainer*> single{c.trainer.get()};
  CHECK(sae::train_together(std::span<Trainer* const>(single), once, nothing) == sae::FitStatus::exhausted);
  CHECK(c.trainer->step() == 200 / batch);

  std::vector<Trainer*> none;
  CHECK_THROWS_WITH(sae::train_together(std::span<Trainer* const>(none), source, nothing),
                    "train_together: there are no trainers");
  One d = make("default", "topk", 5, threads), e = make("default", "topk", 5, threads);
  e.recipe.config.batch = 16;
  e.trainer = std::make_unique<Trainer>(*e.model, e.recipe.config, e.recipe.objective, threads);
  std::vector<Trainer*> unequal{d.trainer.get(), e.trainer.get()};
  CHECK_THROWS_WITH(sae::train_together(std::span<Trainer* const>(unequal), source, nothing),
                    "train_together: batches of 32 and of 16 rows cannot share a stream");
}

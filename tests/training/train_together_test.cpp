// Several models on one stream of rows: each as alone, the rows read once, and gone on with to the last bit.
#include <sae/data/indexed_source.hpp>
#include <sae/data/shuffle_buffer.hpp>
#include <sae/formats/checkpoint.hpp>
#include <sae/training/recipes.hpp>
#include <sae/training/train_together.hpp>

#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"
#include "temp_folder.hpp"

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

// Trainers of unequal kinds and lengths on a shuffle buffer, made afresh as another process would make them.
struct Together {
  explicit Together(int thread_count, Index long_run = 12)
      : threads(thread_count),
        source(sae::MatrixSource<float>(sae_test::random_rows(150, width, 2).cast<float>(), {.shuffle = false}),
               {.capacity = 100, .seed = 6}) {
    for (const auto& [recipe, activation, steps] : {std::tuple{"default", "jumprelu", Index{5}},
                                                    {"default", "topk", long_run},
                                                    {"saelens", "topk", Index{9}},
                                                    {"default", "batchtopk", long_run}})
      all.push_back(make(recipe, activation, steps, threads));
    all[0].recipe.config.ema = 0.5;
    all[2].recipe.config.report_every = 4;
    for (One& one : all) {
      one.trainer = std::make_unique<Trainer>(*one.model, one.recipe.config, one.recipe.objective, threads);
      trainers.push_back(one.trainer.get());
    }
    group = std::make_unique<sae::TrainerGroup<Trainer>>(trainers);
  }
  sae::Threads threads;
  sae::ShuffleBuffer<sae::MatrixSource<float>> source;
  std::vector<One> all;
  std::vector<Trainer*> trainers;
  std::unique_ptr<sae::TrainerGroup<Trainer>> group;
};
constexpr auto nothing = [](std::size_t, const sae::StepReport&) {};
struct Killed {};  // thrown by a callback in the place of a kill

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

  sae::MatrixSource<float> once(rows, {.shuffle = false, .epochs = 1});
  One c = make("saelens", "topk", 50, threads);
  std::vector<Trainer*> single{c.trainer.get()};
  CHECK(sae::train_together(std::span<Trainer* const>(single), once, nothing) == sae::FitStatus::exhausted);
  CHECK(c.trainer->step() == 200 / batch);

  std::vector<Trainer*> none;
  CHECK_THROWS_WITH(sae::train_together(std::span<Trainer* const>(none), source, nothing),
                    "TrainerGroup: there are no trainers");
  One d = make("default", "topk", 5, threads), e = make("default", "topk", 5, threads);
  e.recipe.config.batch = 16;
  e.trainer = std::make_unique<Trainer>(*e.model, e.recipe.config, e.recipe.objective, threads);
  std::vector<Trainer*> unequal{d.trainer.get(), e.trainer.get()};
  CHECK_THROWS_WITH(sae::train_together(std::span<Trainer* const>(unequal), source, nothing),
                    "TrainerGroup: batches of 32 and of 16 rows cannot share a stream");
}

TEST_CASE("TrainerGroup: killed after any step it ends with the same bytes", "[training][together][checkpoint]") {
  const TempFolder folder;
  Together whole(2);
  std::vector<Index> reports(whole.all.size(), 0);
  Index steps = 0;
  const auto count = [&](std::size_t which, const sae::StepReport&) { ++reports[which]; };
  const auto count_steps = [&](const sae::StepReport& report) { CHECK(report.step == ++steps); };
  CHECK(whole.group->fit(whole.source, count, count_steps) == sae::FitStatus::finished);
  CHECK(reports == std::vector<Index>{5, 12, 3, 12});  // the third at 4, 8 and its last one
  CHECK(steps == 12);

  for (const auto& kills : {std::vector<Index>{1, 2, 7}, {5, 6, 9}, {3, 11}, {12}}) {
    CAPTURE(kills);
    for (const Index at : kills) {
      Together part(1);
      if (at != kills.front()) sae::load_checkpoint(*part.group, folder / "c");
      const auto kill = [&](const sae::StepReport& report) {
        if (report.step == at) throw Killed();
      };
      REQUIRE_THROWS_AS(part.group->fit(part.source, nothing, sae::checkpoint_every(folder / "c", 1), kill), Killed);
    }
    Together last(2);
    sae::load_checkpoint(*last.group, folder / "c");
    CHECK(last.group->step() == kills.back());
    CHECK(last.trainers[0]->step() == std::min<Index>(5, kills.back()));
    CHECK(last.group->fit(last.source, nothing) == sae::FitStatus::finished);
    for (std::size_t n = 0; n < whole.all.size(); ++n) {
      CAPTURE(n);
      CHECK(same(*last.all[n].model, *whole.all[n].model));
    }
  }
}

TEST_CASE("TrainerGroup: a checkpoint of other trainers is refused, and nothing changes", "[training][together][checkpoint]") {
  const TempFolder folder;
  Together saved(1);
  const auto stop = [](const sae::StepReport& report) { return report.step == 6; };
  CHECK(saved.group->fit(saved.source, nothing, sae::checkpoint_every(folder / "c", 6, {{"seed", "1"}}), stop) ==
        sae::FitStatus::stopped);

  Together other(1, 13), same_ones(1);
  CHECK_THROWS_WITH(sae::load_checkpoint(*other.group, folder / "c", {{"seed", "1"}}),
                    Catch::Matchers::ContainsSubstring("was made with 2.trainer.steps = 12, which is 13 now"));
  CHECK_THROWS_WITH(sae::load_checkpoint(*same_ones.group, folder / "c", {{"seed", "2"}}),
                    Catch::Matchers::ContainsSubstring("was made with seed = 1, which is 2 now"));
  sae::TrainerGroup<Trainer> fewer({same_ones.trainers[0], same_ones.trainers[1]});
  CHECK_THROWS_WITH(sae::load_checkpoint(fewer, folder / "c", {{"seed", "1"}}),
                    Catch::Matchers::ContainsSubstring("was made with trainers = 4, which is 2 now"));
  CHECK_THROWS_AS(sae::load_checkpoint(*same_ones.trainers[1], folder / "c"), sae::FileError);

  // A step that a trainer cannot have, and one at which it cannot stand beside the others.
  const std::string good = sae::read_file(folder / "c");
  const auto with_step = [&](const std::string& name, std::int64_t step) {
    std::string bytes = good;
    const auto header = sae::parse_safetensors(std::as_bytes(std::span(good)), "c");
    std::memcpy(bytes.data() + header.offset + static_cast<std::size_t>(header.tensors.at(name).begin), &step, sizeof step);
    sae::atomic_write_text(folder / "wrong", bytes, {.overwrite = true});
  };
  with_step("2.counters", 13);
  CHECK_THROWS_WITH(sae::load_checkpoint(*same_ones.group, folder / "wrong", {{"seed", "1"}}),
                    Catch::Matchers::ContainsSubstring("its step 13 is beyond the 12 steps of the run"));
  CHECK(same_ones.group->step() == 0);
  CHECK(same(*same_ones.all[1].model, *Together(1).all[1].model));
  with_step("1.counters", 4);
  sae::load_checkpoint(*same_ones.group, folder / "wrong", {{"seed", "1"}});
  CHECK_THROWS_WITH(same_ones.group->fit(same_ones.source, nothing),
                    Catch::Matchers::ContainsSubstring("the trainers do not stand at one step"));
}

TEST_CASE("TrainerGroup: no checkpoint and no going on where the trainers stand apart", "[training][together][checkpoint]") {
  const TempFolder folder;
  Together group(1);
  const auto save_within = [&](std::size_t which, const sae::StepReport&) {
    if (which == 0) sae::save_checkpoint(*group.group, folder / "c");
  };
  CHECK_THROWS_WITH(group.group->fit(group.source, save_within),
                    Catch::Matchers::ContainsSubstring("to be called in a callback of fit"));
  CHECK(folder.names().empty());
  CHECK_THROWS_WITH(group.group->fit(group.source, nothing),
                    "TrainerGroup: the trainers do not stand at one step; there is no going on from here");

  // Between two steps an exception does no harm.
  Together between(1), whole(1);
  const auto fail = [](const sae::StepReport& report) {
    if (report.step == 7) throw Killed();
  };
  CHECK_THROWS_AS(between.group->fit(between.source, nothing, fail), Killed);
  CHECK(between.group->fit(between.source, nothing) == sae::FitStatus::finished);
  whole.group->fit(whole.source, nothing);
  for (std::size_t n = 0; n < whole.all.size(); ++n) CHECK(same(*between.all[n].model, *whole.all[n].model));
  CHECK_THROWS_WITH(whole.group->fit(whole.source, nothing),
                    "TrainerGroup: fit was run to its end already; make new trainers to go on");
}

TEST_CASE("TrainerGroup: says which model diverged, and keeps the last good checkpoint", "[training][together][checkpoint]") {
  const TempFolder folder;
  Together group(1);
  group.all[2].recipe.config.learning_rate = 1e30;
  Trainer wild(*group.all[2].model, group.all[2].recipe.config, group.all[2].recipe.objective, group.threads);
  sae::TrainerGroup<Trainer> with_wild({group.trainers[0], &wild, group.trainers[1]});
  std::string first;
  const auto look = [&](const sae::StepReport& report) {
    if (report.step == 1) first = sae::read_file(folder / "c");
  };
  CHECK_THROWS_AS(with_wild.fit(group.source, nothing, sae::checkpoint_every(folder / "c", 1), look), sae::DivergedError);
  CHECK(with_wild.which() == 1);
  CHECK(sae::read_file(folder / "c").size() == first.size());
  CHECK(group.trainers[0]->scale() != 1);  // nothing was folded

  Together late(1);  // the weights of the last one, at the last step
  const auto spoil = [&](std::size_t which, const sae::StepReport& report) {
    if (which == 3 && report.step == report.steps)
      late.all[3].model->parameters().b_dec[0] = std::numeric_limits<float>::quiet_NaN();
  };
  CHECK_THROWS_AS(late.group->fit(late.source, spoil), sae::DivergedError);
  CHECK(late.group->which() == 3);
  CHECK(late.trainers[0]->scale() != 1);
}

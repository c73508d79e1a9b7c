// What is saved is what a training needs: one that was stopped and went on ends with the bytes of one that never stopped.
#include <cstring>
#include <tuple>

#include "catch_compat.hpp"
#include "small_training.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;

using namespace small_training;

namespace {

template <class Scalar, class Activation, class Terms>
void require_resumes(Activation activation, Terms terms, sae::TrainerConfig config) {
  config.steps = 24;
  config.batch = 32;
  const std::vector<Index> stops{1, 2, 9, 17, 22};
  {
    using R = Run<Activation, Scalar, Terms, sae::MatrixSource<Scalar>>;
    const auto make = [&](int threads) {
      typename R::Source source(some_rows<Scalar>(150), {.seed = 5});  // five epochs
      return std::make_unique<R>(threads, activation, terms, config, std::move(source));
    };
    require_same_bytes(make, stops);
  }
  {
    using R = Run<Activation, Scalar, Terms, sae::ShuffleBuffer<sae::MatrixSource<Scalar>, Scalar>>;
    const auto make = [&](int threads) {
      sae::MatrixSource<Scalar> rows(some_rows<Scalar>(150), {.shuffle = false});
      typename R::Source source(std::move(rows), {.capacity = 100, .seed = 9});
      return std::make_unique<R>(threads, activation, terms, config, std::move(source));
    };
    require_same_bytes(make, stops);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("checkpoint: TopK with AuxK resumes to the last bit", "[formats][checkpoint]", float, double) {
  sae::TrainerConfig config{.learning_rate = 3e-3};
  config.dead.window = 64;
  require_resumes<TestType>(sae::TopK{.k = 2}, sae::Objective{sae::AuxK{}}, config);
}
TEMPLATE_TEST_CASE("checkpoint: dead latents counted in steps after the forward resume to the last bit",
                   "[formats][checkpoint]", float, double) {
  sae::TrainerConfig config{.learning_rate = 3e-3, .center = sae::Center::first_batch_geometric_median};
  config.dead = {.window = 2, .unit = sae::DeadUnit::steps, .after_counting = true};
  require_resumes<TestType>(sae::TopK{.k = 2}, sae::Objective{sae::AuxK{.normaliser = sae::AuxKNormaliser::residual_variance}},
                            config);
}
TEMPLATE_TEST_CASE("checkpoint: ReLU with clipping, warm-up and decay resumes to the last bit", "[formats][checkpoint]", float,
                   double) {
  sae::TrainerConfig config{.learning_rate = 1e-2,
                            .schedule = {.warmup = 4, .shape = sae::ScheduleShape::cosine, .decay = 5},
                            .sparsity_warmup = 12,
                            .clip_norm = 0.5,
                            .decoder = sae::DecoderNorm::free,
                            .center = sae::Center::geometric_median,
                            .normalisation = sae::Normalisation::sqrt_d};
  require_resumes<TestType>(sae::ReLU{}, sae::Objective{sae::L1{.coefficient = 0.1}}, config);
}

TEST_CASE("checkpoint: every optimizer and the average of weights resume to the last bit", "[formats][checkpoint]") {
  for (const sae::Optimizer& optimizer :
       std::vector<sae::Optimizer>{sae::Adam{.beta1 = 0}, sae::AdamW{}, sae::Sgd{}, sae::Sgd{.momentum = 0.9, .nesterov = true},
                                   sae::SignSgd{}, sae::SignSgd{.momentum = 0.9}, sae::Muon{}, sae::Adafactor{},
                                   sae::Adafactor{.relative = true}, sae::ScheduleFree{}, sae::ScheduleFree{.sign = false}}) {
    CAPTURE(optimizer.index());
    sae::TrainerConfig config{.learning_rate = 1e-2, .optimizer = optimizer};
    if (!std::holds_alternative<sae::ScheduleFree>(optimizer)) config.ema = 0.8;
    require_resumes<float>(sae::TopK{.k = 2}, sae::Objective<>{}, config);
    config.decoder = sae::DecoderNorm::free;
    require_resumes<double>(sae::JumpReLU{.threshold = 0.1, .bandwidth = 0.5},
                            sae::Objective{sae::L0Penalty{.coefficient = 0.1}}, config);
  }
}

TEST_CASE("checkpoint: moments of 16 bits are saved as such and resume to the last bit", "[formats][checkpoint]") {
  for (const sae::Optimizer& optimizer :
       std::vector<sae::Optimizer>{sae::Adam{}, sae::Sgd{.momentum = 0.9}, sae::SignSgd{.momentum = 0.9}}) {
    CAPTURE(optimizer.index());
    require_resumes<float>(sae::TopK{.k = 2}, sae::Objective<>{},
                           {.learning_rate = 1e-2, .optimizer = optimizer, .moments = sae::Precision::bfloat16});
  }
  const TempFolder folder;
  const auto narrow = make_small(12, {.k = 2}, {.moments = sae::Precision::bfloat16});
  const auto kill = [&](auto& trainer, const sae::StepReport&) {
    sae::save_checkpoint(trainer, folder / "c");
    throw Killed();
  };
  REQUIRE_THROWS_AS(narrow->trainer.fit(narrow->source, kill), Killed);
  const sae::SafetensorsFile file(folder / "c");
  CHECK(file.info("moment0.W_enc").dtype == sae::Dtype::bfloat16);
  CHECK(file.info("moment1.W_dec").dtype == sae::Dtype::bfloat16);
  CHECK(file.info("moment1.b_enc").dtype == sae::Dtype::float32);
  CHECK(file.info("W_dec").dtype == sae::Dtype::float32);
  CHECK_THAT(load_error(*make_small(12), folder / "c"),
             ContainsSubstring("was made with trainer.moments = bfloat16, which is full now"));
}

TEMPLATE_TEST_CASE("checkpoint: weights of 16 bits resume to the last bit", "[formats][checkpoint]", sae::bfloat16,
                   sae::float16) {
  using R = Run<sae::TopK, float, sae::Objective<sae::AuxK>, sae::MatrixSource<float>, TestType>;
  sae::TrainerConfig config{.steps = 24, .batch = 32, .learning_rate = 3e-3, .moments = sae::Precision::bfloat16};
  config.dead.window = 64;
  const auto make = [&](int threads) {
    sae::MatrixSource<float> source(some_rows<float>(150), {.seed = 5});
    return std::make_unique<R>(threads, sae::TopK{.k = 2}, sae::Objective{sae::AuxK{}}, config, std::move(source));
  };
  require_same_bytes(make, {1, 9, 22});
  const TempFolder folder;
  const auto run = make(1);
  run->trainer.fit(run->source, sae::checkpoint_every(folder / "c", 12));
  CHECK(sae::SafetensorsFile(folder / "c").info("W_dec").dtype == sae::dtype_of<TestType>());
  Run<sae::TopK, float, sae::Objective<sae::AuxK>, sae::MatrixSource<float>> wide(
      1, {.k = 2}, sae::Objective{sae::AuxK{}}, config, sae::MatrixSource<float>(some_rows<float>(150), {.seed = 5}));
  CHECK_THAT(load_error(wide, folder / "c"), ContainsSubstring("was made with model.weights = "));
}

TEST_CASE("checkpoint: another optimizer is refused by name", "[formats][checkpoint]") {
  const TempFolder folder;
  stop_small(folder / "c", 12, 3);
  const auto other = make_small(12, {.k = 2}, {.optimizer = sae::Muon{}});
  CHECK_THAT(load_error(*other, folder / "c"),
             ContainsSubstring("was made with trainer.optimizer.name = adam, which is muon now"));
  const auto averaging = make_small(12, {.k = 2}, {.ema = 0.5});
  CHECK_THAT(load_error(*averaging, folder / "c"), ContainsSubstring("was made with trainer.ema = 0, which is 0.5 now"));
}

TEST_CASE("checkpoint: a run that has ended is not saved, a stopped one goes on", "[formats][checkpoint]") {
  const TempFolder folder;
  const auto run = make_small(6);
  run->trainer.fit(run->source);
  CHECK_THROWS_AS(sae::save_checkpoint(run->trainer, folder / "c"), sae::ValueError);
  CHECK(folder.names().empty());

  const auto stopped = make_small(6);
  const auto stop = [&](auto& trainer, const sae::StepReport& report) {
    if (report.step == 3) sae::save_checkpoint(trainer, folder / "c");
    return report.step == 3;
  };
  CHECK(stopped->trainer.fit(stopped->source, stop) == sae::FitStatus::stopped);
  const auto resumed = make_small(6);
  sae::load_checkpoint(resumed->trainer, folder / "c");
  CHECK(resumed->trainer.step() == 3);
  CHECK(resumed->trainer.tokens() == 96);
  CHECK(resumed->trainer.fit(resumed->source) == sae::FitStatus::finished);
  CHECK((bytes_of(resumed->model) == bytes_of(run->model)));
}

TEST_CASE("checkpoint: outside of fit the source cannot be asked, so nothing is saved", "[formats][checkpoint]") {
  const TempFolder folder;
  const auto run = make_small(6);
  CHECK_THROWS_WITH(sae::save_checkpoint(run->trainer, folder / "c"), ContainsSubstring("in a callback of fit"));
  const auto fail = [](const sae::StepReport& report) {
    if (report.step == 3) throw Killed();
  };
  REQUIRE_THROWS_AS(run->trainer.fit(run->source, sae::checkpoint_every(folder / "c", 2), fail), Killed);
  const std::string good = sae::read_file(folder / "c");
  CHECK_THROWS_AS(sae::save_checkpoint(run->trainer, folder / "c"), sae::ValueError);
  CHECK((sae::read_file(folder / "c") == good));
}

TEST_CASE("checkpoint: a checkpoint of the last step resumes to the end", "[formats][checkpoint]") {
  const TempFolder folder;
  const auto run = make_small(6), resumed = make_small(6);
  run->trainer.fit(run->source, sae::checkpoint_every(folder / "c", 6));
  sae::load_checkpoint(resumed->trainer, folder / "c");
  CHECK(resumed->trainer.fit(resumed->source) == sae::FitStatus::finished);
  CHECK((bytes_of(resumed->model) == bytes_of(run->model)));
}

TEST_CASE("checkpoint_every: at each multiple, or at the first report after it", "[formats][checkpoint]") {
  const auto saves = [](Index every, Index report_every) {
    const TempFolder folder;
    std::vector<Index> at;
    const auto run = make_small(20, {.k = 2}, {.report_every = report_every});
    sae::CheckpointEvery save(folder / "c", every);
    const auto watch = [&](const sae::StepReport& report) {
      if (save.saved() > static_cast<Index>(at.size())) at.push_back(report.step);
    };
    run->trainer.fit(run->source, [&](auto& trainer, const sae::StepReport& report) {
      save(trainer, report);
      watch(report);
    });
    CHECK((at.empty() || folder.names() == std::vector<std::string>{"c"}));
    return at;
  };
  CHECK(saves(5, 1) == std::vector<Index>{5, 10, 15, 20});
  CHECK(saves(7, 1) == std::vector<Index>{7, 14});
  CHECK(saves(1, 1).size() == 20);
  CHECK(saves(5, 3) == std::vector<Index>{6, 12, 15, 20});
  CHECK(saves(3, 8) == std::vector<Index>{8, 16, 20});
  CHECK(saves(21, 1).empty());
  CHECK_THROWS_AS(sae::checkpoint_every("c", 0), sae::ValueError);

  // After a resume the count goes on from the step, not from the start of the process.
  const TempFolder folder;
  stop_small(folder / "c", 20, 7);
  const auto run = make_small(20);
  sae::load_checkpoint(run->trainer, folder / "c");
  sae::CheckpointEvery save(folder / "c", 10);
  run->trainer.fit(run->source, [&](auto& trainer, const sae::StepReport& report) {
    const Index before = save.saved();
    save(trainer, report);
    CHECK((save.saved() > before) == (report.step == 10 || report.step == 20));
  });
  CHECK(save.saved() == 2);
}

namespace {

// Fields of an aggregate, counted by how many things it can be made from.
struct Anything {
  template <class T>
  operator T() const;
};
template <class T, class... Fields>
constexpr std::size_t count_fields() {
  if constexpr (requires { T{Fields{}..., Anything{}}; }) {
    return count_fields<T, Fields..., Anything>();
  } else {
    return sizeof...(Fields);
  }
}
template <class T>
std::size_t count_settings() {
  std::size_t count = 0;
  T().visit_settings([&](std::string_view, const auto&) { ++count; });
  return count;
}

}  // namespace

TEST_CASE("checkpoint: no field of a config is forgotten among the settings", "[formats][checkpoint]") {
  CHECK(count_settings<sae::TrainerConfig>() ==
        count_fields<sae::TrainerConfig>() - 2);  // but report_every and the function `whitening`
  CHECK(count_settings<sae::Schedule>() == count_fields<sae::Schedule>());
  CHECK(count_settings<sae::Adam>() == count_fields<sae::Adam>());
  CHECK(count_settings<sae::AdamW>() == count_fields<sae::AdamW>());
  CHECK(count_settings<sae::Sgd>() == count_fields<sae::Sgd>());
  CHECK(count_settings<sae::SignSgd>() == count_fields<sae::SignSgd>());
  CHECK(count_settings<sae::Muon>() == count_fields<sae::Muon>());
  CHECK(count_settings<sae::Adafactor>() == count_fields<sae::Adafactor>());
  CHECK(count_settings<sae::ScheduleFree>() == count_fields<sae::ScheduleFree>());
  CHECK(count_settings<sae::DeadLatentOptions>() == count_fields<sae::DeadLatentOptions>());
  CHECK(count_settings<sae::L1>() == count_fields<sae::L1>());
  CHECK(count_settings<sae::AuxK>() == count_fields<sae::AuxK>());
  CHECK(count_settings<sae::TopK>() == count_fields<sae::TopK>());
}

TEST_CASE("checkpoint: settings that differ are refused by name with both values", "[formats][checkpoint]") {
  const TempFolder folder;
  const auto path = folder / "c";
  const sae::Settings own{{"data", "rows.npy"}, {"seed", "4"}};
  stop_small(path, 12, 3, own);
  {
    const auto same = make_small(12);
    CHECK(load_error(*same, path, own).empty());
    CHECK(load_error(*same, path, {{"data", "other.npy"}, {"seed", "4"}}) ==
          path.string() + ": was made with data = rows.npy, which is other.npy now");
    CHECK_THAT(load_error(*same, path), ContainsSubstring("was made with data = rows.npy, which is no setting now"));
    CHECK_THAT(load_error(*same, path, {{"data", "rows.npy"}, {"seed", "4"}, {"new", "1"}}),
               ContainsSubstring("was made without the setting new, which is 1 now"));
  }
  const auto refused = [&](const std::unique_ptr<Small>& run, const std::string& says) {
    const std::string before = bytes_of(run->model);
    CHECK(load_error(*run, path, own) == path.string() + ": " + says);
    CHECK((bytes_of(run->model) == before));
    CHECK(run->trainer.step() == 0);
    run->trainer.fit(run->source);  // as if nothing had been
    CHECK(run->trainer.step() == run->trainer.config().total_steps());
  };
  refused(make_small(13), "was made with trainer.steps = 12, which is 13 now");
  refused(make_small(12, {.k = 3}), "was made with activation.k = 2, which is 3 now");
  refused(make_small(12, {.k = 2}, {.learning_rate = 0.1}), "was made with trainer.learning_rate = 0.001, which is 0.1 now");
  refused(make_small(12, {.k = 2}, {.schedule = {.decay = 1}}), "was made with trainer.schedule.decay = 0, which is 1 now");
  refused(make_small(12, {.k = 2}, {.optimizer = sae::Adam{.beta2 = 0.5}}),
          "was made with trainer.optimizer.beta2 = 0.999, which is 0.5 now");
  refused(make_small(12, {.k = 2}, {.decoder = sae::DecoderNorm::free}),
          "was made with trainer.decoder = unit, which is free now");
  refused(make_small(12, {.k = 2}, {.center = sae::Center::none}), "was made with trainer.center = mean, which is none now");
  refused(make_small(12, {.k = 2}, {}, latents + 1), "was made with model.latents = 40, which is 41 now");
  refused(make_small(12, {.k = 2}, {}, latents, {.k = 7}), "was made with term1.k = 0, which is 7 now");
  {
    const auto reports = make_small(12, {.k = 2}, {.report_every = 4});
    CHECK(load_error(*reports, path, own).empty());
  }
  sae::Threads one(1);
  Sae<sae::TopK, double> wide(width, latents, {.k = 2});
  sae::Trainer trainer(wide, {.steps = 12, .batch = 32}, one);
  CHECK_THROWS_WITH(sae::load_checkpoint(trainer, path, own),
                    ContainsSubstring("was made with model.scalar = float32, which is float64 now"));
  Sae<sae::ReLU, float> relu(width, latents);
  sae::Trainer relu_trainer(relu, {.steps = 12, .batch = 32}, one);
  CHECK_THROWS_WITH(sae::load_checkpoint(relu_trainer, path, own),
                    ContainsSubstring("was made with activation = topk, which is relu now"));
}

TEST_CASE("checkpoint: torn and hostile files are refused in one sentence, and nothing changes", "[formats][checkpoint]") {
  const TempFolder folder;
  const auto path = folder / "c";
  stop_small(path, 12, 3);
  const std::string good = sae::read_file(path);
  const auto run = make_small(12);
  const std::string before = bytes_of(run->model);
  const auto refuses = [&](const std::string& bytes) {
    sae::atomic_write_text(path, bytes, {.overwrite = true});
    const std::string error = load_error(*run, path);
    CHECK(error.starts_with(path.string() + ": "));
    CHECK(error.find('\n') == std::string::npos);
    REQUIRE((bytes_of(run->model) == before));
    REQUIRE(run->trainer.step() == 0);
    return error;
  };
  for (std::size_t length = 0; length < good.size(); length += 97) refuses(good.substr(0, length));
  refuses(good + "x");
  CHECK_THAT(refuses("not a checkpoint at all"), ContainsSubstring("is not a safetensors file"));

  // The same file with one thing changed. Numbers stay where they are, so that only what is meant is wrong.
  const auto swapped = [&](const std::string& from, const std::string& to) {
    std::string bytes = good;
    const auto at = bytes.find(from);
    REQUIRE(at != std::string::npos);
    REQUIRE(from.size() == to.size());
    return bytes.replace(at, from.size(), to);
  };
  CHECK_THAT(refuses(swapped("sae checkpoint", "sae checkpoinT")), ContainsSubstring("is not a checkpoint"));
  CHECK_THAT(refuses(swapped("\"version\":\"1\"", "\"version\":\"2\"")),
             ContainsSubstring("is a checkpoint of version 2, version 1 is read"));
  CHECK_THAT(refuses(swapped("\"moment1.b_enc\"", "\"moment7.b_enc\"")), ContainsSubstring("has no tensor moment1.b_enc"));
  CHECK_THAT(refuses(swapped("\"shape\":[40,12]", "\"shape\":[12,40]")),
             ContainsSubstring("tensor W_enc has shape [12, 40], this trainer's is [40, 12]"));
  CHECK_THAT(refuses(swapped("\"source.0.counters\":{\"dtype\":\"U64\"", "\"source.0.counters\":{\"dtype\":\"I64\"")),
             ContainsSubstring("tensor source.0.counters holds int64, this trainer's holds uint64"));
  CHECK_THAT(refuses(swapped("\"W_enc\":{\"dtype\":\"F32\"", "\"W_enc\":{\"dtype\":\"I32\"")),
             ContainsSubstring("tensor W_enc holds int32, this trainer's holds float32"));
  CHECK_THAT(refuses(swapped("\"source.0.rows\"", "\"source.9.rows\"")), ContainsSubstring("has no tensor source.0.rows"));
  CHECK_THAT(refuses(swapped("\"source.0.counters\"", "\"source.9.counters\"")),
             ContainsSubstring("is none of this trainer's"));

  // Numbers of the right kind that no training can have.
  const auto with = [&](const std::string& name, std::size_t at, const auto& value) {
    std::string bytes = good;
    const auto header = sae::parse_safetensors(std::as_bytes(std::span(good)), "c");
    const auto& tensor = header.tensors.at(name);
    std::memcpy(bytes.data() + header.offset + static_cast<std::size_t>(tensor.begin) + at * sizeof value, &value,
                sizeof value);
    return bytes;
  };
  CHECK_THAT(refuses(with("counters", 0, std::int64_t{13})),
             ContainsSubstring("its step 13 is beyond the 12 steps of the run"));
  CHECK_THAT(refuses(with("counters", 0, std::int64_t{-1})), ContainsSubstring("counters holds -1"));
  CHECK_THAT(refuses(with("counters", 1, std::int64_t{1} << 62 | 1)), ContainsSubstring("is no count"));
  CHECK_THAT(refuses(with("silent", 39, std::int64_t{-5})), ContainsSubstring("silent holds -5"));
  for (const double scale : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()})
    CHECK_THAT(refuses(with("scale", 0, scale)), ContainsSubstring("scale = "));

  // A place that the source does not have is the source's to refuse.
  for (const std::size_t counter : {0u, 1u}) {
    sae::atomic_write_text(path, with("source.0.counters", counter, ~std::uint64_t{0}), {.overwrite = true});
    const auto lost = make_small(12);
    sae::load_checkpoint(lost->trainer, path);
    CHECK_THROWS_AS(lost->trainer.fit(lost->source), sae::ValueError);
  }
  {  // sources in sources without end
    sae::SafetensorsWriter deep;
    const sae::SafetensorsFile file(path);
    std::map<std::string, sae::Buffer<float>> floats;
    const std::vector<std::uint64_t> two(2);
    const std::vector<std::int64_t> counters(2), silent(40);
    const std::vector<double> scale{1.0};
    for (const auto& [key, value] : file.metadata()) deep.metadata[key] = value;
    for (const auto& [name, info] : file.tensors())
      if (info.dtype == sae::Dtype::float32 && !name.starts_with("source"))
        deep.add(name, info.shape, std::span<const float>(floats[name] = file.values<float>(name)));
    deep.add("silent", {40}, silent);
    deep.add("counters", {2}, counters);
    deep.add("scale", {1}, scale);
    std::string name = "source";
    for (int i = 0; i < 2000; ++i) {
      deep.add(name + ".counters", {2}, two);
      deep.add(name + ".rows", {0, 0}, std::span<const float>());
      name += ".0";
    }
    deep.save(folder / "deep");
    CHECK_THAT(refuses(sae::read_file(folder / "deep")), ContainsSubstring("nested deeper than 16 levels"));
  }
  fs::remove(path);
  CHECK_THAT(load_error(*run, path), ContainsSubstring(path.string()));
  fs::create_directory(path);
  CHECK_THAT(load_error(*run, path), ContainsSubstring(path.string()));
  fs::remove(path);

  sae::atomic_write_text(path, good, {.overwrite = true});  // the trainer that saw all this is as good as new
  CHECK(load_error(*run, path).empty());
  CHECK(run->trainer.step() == 3);
}

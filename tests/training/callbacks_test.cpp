#include <sae/data/indexed_source.hpp>
#include <sae/training/callbacks.hpp>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"

namespace {

using sae::Index;
using Json = nlohmann::json;
constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

sae::StepReport report(Index step, Index steps, double loss = 1) {
  sae::StepReport out;
  out.step = step;
  out.steps = steps;
  out.tokens = 64 * step;
  out.loss = loss;
  return out;
}
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}
std::ptrdiff_t count(const std::string& text, char c) { return std::count(text.begin(), text.end(), c); }
template <class... Callbacks>
sae::FitStatus run(Index steps, Callbacks&&... callbacks) {
  sae::SparseAutoencoder<4, 16, sae::TopK> model({.k = 3});
  sae::Trainer trainer(model, {.steps = steps, .batch = 8});
  sae::MatrixSource<float> source(sae::Matrix<float>(sae_test::random_rows(50, 4, 1).cast<float>()));
  return trainer.fit(source, callbacks...);
}

}  // namespace

TEST_CASE("progress on a file: a line every tenth of the run, and the last", "[training][callbacks]") {
  std::ostringstream out;
  run(40, sae::progress_bar(out));
  const auto lines = lines_of(out.str());
  REQUIRE(lines.size() == 11);  // step 1 and each tenth
  CHECK(lines.front().rfind("step 1/40  loss ", 0) == 0);
  CHECK(lines[1].rfind("step 4/40  loss ", 0) == 0);
  CHECK(lines.back().rfind("step 40/40  loss ", 0) == 0);
  CHECK(lines.back().find("  L0 3  explained variance ") != std::string::npos);
  CHECK(lines.back().find("  dead ") != std::string::npos);
  CHECK(lines.back().find(" tokens/s") != std::string::npos);
  CHECK(lines.front().find(" tokens/s") == std::string::npos);  // nothing to measure yet
  CHECK(out.str().find('\r') == std::string::npos);
  CHECK(out.str().back() == '\n');

  std::ostringstream one;
  run(1, sae::progress_bar(one));
  CHECK(lines_of(one.str()).size() == 1);
  std::ostringstream none;
  { const auto never_called = sae::progress_bar(none); }
  CHECK(none.str().empty());
}

TEST_CASE("progress on a terminal: one line drawn again, ended at the end or where the run was left", "[training][callbacks]") {
  std::ostringstream out;
  run(200, sae::progress_bar(out, true));
  CHECK(count(out.str(), '\n') == 1);
  CHECK(out.str().back() == '\n');
  CHECK(out.str().front() == '\r');
  CHECK(out.str().find("step 200/200") != std::string::npos);
  CHECK(count(out.str(), '\r') < 100);  // not every step

  std::ostringstream stopped;
  {
    auto bar = sae::progress_bar(stopped, true);
    bar(report(1, 100));
    CHECK(stopped.str().back() != '\n');
  }
  CHECK(stopped.str().back() == '\n');
  std::ostringstream finished;
  {
    auto bar = sae::progress_bar(finished, true);
    bar(report(100, 100));
  }
  CHECK(count(finished.str(), '\n') == 1);
}

TEST_CASE("progress rounds to four digits and shows what is not a number", "[training][callbacks]") {
  std::ostringstream out;
  auto bar = sae::progress_bar(out);
  sae::StepReport r = report(10, 10, 1234.5678);
  r.l0 = 0.000123456;
  r.explained_variance = nan_value;
  bar(r);
  CHECK(out.str() == "step 10/10  loss 1235  L0 0.0001235  explained variance nan  dead 0\n");
}

TEST_CASE("the log: one JSON object a report, numbers in full", "[training][callbacks]") {
  std::ostringstream out;
  std::vector<sae::StepReport> reports;
  run(5, sae::json_lines_log(out), [&](const sae::StepReport& r) { reports.push_back(r); });
  const auto lines = lines_of(out.str());
  REQUIRE(lines.size() == 5);
  for (std::size_t i = 0; i < 5; ++i) {
    const Json line = Json::parse(lines[i]);
    const auto& r = reports[i];
    CHECK(line.at("step").get<Index>() == r.step);
    CHECK(line.at("tokens").get<Index>() == r.tokens);
    CHECK(line.at("loss").get<double>() == r.loss);
    CHECK(line.at("reconstruction").get<double>() == r.reconstruction);
    CHECK(line.at("aux_k").get<double>() == r.terms.at(0).second);
    CHECK(line.at("l0").get<double>() == r.l0);
    CHECK(line.at("explained_variance").get<double>() == r.explained_variance);
    CHECK(line.at("dead_latents").get<Index>() == r.dead);
    CHECK(line.at("learning_rate").get<double>() == r.learning_rate);
    CHECK(line.at("sparsity_scale").get<double>() == 1);
    CHECK(line.at("gradient_norm").is_null());  // not clipped, not computed
    CHECK(line.at("tokens_per_second").is_null() == (i == 0));
    if (i > 0) CHECK(line.at("tokens_per_second").get<double>() > 0);
  }
}

TEST_CASE("the log of runs that end early or never begin", "[training][callbacks]") {
  std::ostringstream stopped;
  CHECK(run(100, sae::json_lines_log(stopped), [](const sae::StepReport& r) { return r.step == 3; }) ==
        sae::FitStatus::stopped);
  CHECK(lines_of(stopped.str()).size() == 3);
  CHECK(Json::parse(lines_of(stopped.str()).back()).at("step") == 3);

  std::ostringstream thrown;
  CHECK_THROWS_AS(run(100, sae::json_lines_log(thrown),
                      [](const sae::StepReport& r) {
                        if (r.step == 2) sae::throw_value("stop");
                      }),
                  sae::ValueError);
  REQUIRE(lines_of(thrown.str()).size() == 2);  // whole lines
  for (const auto& line : lines_of(thrown.str())) CHECK(Json::parse(line).is_object());
  std::ostringstream none;
  (void)sae::json_lines_log(none);
  CHECK(none.str().empty());
}

TEST_CASE("the log writes null for what is not finite", "[training][callbacks]") {
  std::ostringstream out;
  auto log = sae::json_lines_log(out);
  sae::StepReport r = report(1, 2, nan_value);
  r.explained_variance = -std::numeric_limits<double>::infinity();
  r.terms.emplace_back("l1", 1e-300);
  log(r);
  const Json line = Json::parse(out.str());
  CHECK(line.at("loss").is_null());
  CHECK(line.at("explained_variance").is_null());
  CHECK(line.at("l1").get<double>() == 1e-300);
}

TEST_CASE("a run that goes on counts its speed from there", "[training][callbacks]") {
  const sae::Pace pace(1'000'000'000);
  CHECK(pace.tokens_per_second(1'000'000'000) == 0);
  const double speed = pace.tokens_per_second(1'000'000'064);
  CHECK(speed > 0);
  CHECK(speed <= 64e9);
}

TEST_CASE("early stop waits for its patience", "[training][callbacks]") {
  sae::EarlyStop stop(2, 0.1);
  CHECK_FALSE(stop(report(1, 9, 100)));
  CHECK_FALSE(stop(report(2, 9, 80)));
  CHECK_FALSE(stop(report(3, 9, 75)));  // not 10 % below 80: waited 1
  CHECK_FALSE(stop(report(4, 9, 71)));  // a new best
  CHECK_FALSE(stop(report(5, 9, 65)));
  CHECK(stop(report(6, 9, 65)));
  sae::EarlyStop diverged(3);
  CHECK_FALSE(diverged(report(1, 9, nan_value)));
  CHECK_FALSE(diverged(report(2, 9, nan_value)));
  CHECK(diverged(report(3, 9, nan_value)));
  CHECK_THROWS_WITH(sae::EarlyStop(0), "EarlyStop: patience = 0 is below 1 report");
  CHECK_THROWS_WITH(sae::EarlyStop(1, -1), "EarlyStop: relative = -1 is not in [0, 1)");
  CHECK_THROWS_AS(sae::EarlyStop(1, nan_value), sae::ValueError);
  CHECK(run(500, sae::EarlyStop(1, 0.9)) == sae::FitStatus::stopped);
}

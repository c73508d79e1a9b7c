// The walkthrough as a program, and docs/guide.md, which tells its story.
#include <filesystem>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "example_output.hpp"

#ifdef SAE_TEST_EXAMPLES

using sae_test::ExampleOutput;
using sae_test::TakenApart;

namespace {

std::string squeezed(const std::string& text) {
  std::string out;
  for (const char c : text)
    if (std::isspace(static_cast<unsigned char>(c)) == 0) out += c;
  return out;
}

/// The fenced blocks of one language.
std::vector<std::string> blocks_of(const std::string& guide, const std::string& language) {
  std::vector<std::string> out;
  bool inside = false, wanted = false;
  for (const std::string& line : sae_test::lines_of(guide)) {
    if (line.starts_with("```")) {
      inside = !inside;
      if (inside) wanted = line == "```" + language;
      if (inside && wanted) out.emplace_back();
    } else if (inside && wanted) {
      out.back() += line + "\n";
    }
  }
  return out;
}

void check_figures(const ExampleOutput& output) {
  const auto only = [&](const std::string& phrase) { return output.numbers(phrase).at(0); };
  // 1: half the numbers carry three quarters of the variance, and no unit is a feature.
  const std::vector<double> plain = output.numbers("of 50 units active");
  CHECK(plain.at(0) > 0.7);
  CHECK(plain.at(0) < 0.85);
  CHECK(plain.at(1) > 40);
  CHECK(output.numbers("directions are units").at(0) <= 5);
  // 2
  const std::vector<double> sparse = output.numbers("of 512 latents active");
  CHECK(sparse.at(0) > 0.93);
  CHECK(sparse.at(1) <= 8);
  CHECK(output.numbers("directions are latents").at(0) >= 390);
  CHECK(only("are never active") <= 112);  // 512 latents, 400 features: the others have nothing to say
  // 3: L0, squared error, shrinkage, found
  const std::vector<double> topk = output.numbers("TopK, AuxK"), relu = output.numbers("ReLU, L1");
  CHECK(relu.at(0) < 12);
  CHECK(relu.at(1) > topk.at(1));
  CHECK(topk.at(2) > 0.93);
  CHECK(relu.at(2) < 0.9);
  CHECK(relu.at(3) >= 380);
  // 4
  CHECK(output.numbers("its encoder and decoder").back() > 0.3);
  CHECK(output.numbers("the latent of feature 3").back() > 0.98);
  CHECK(output.numbers("median of that").back() > 0.5);
  // 5: strongest first, and the feature is truly there
  const auto inputs = output.table("5. The inputs", "   latent ");
  REQUIRE(inputs.size() == 5);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    CHECK(inputs[i].at(2) > 1);
    if (i > 0) CHECK(inputs[i].at(0) <= inputs[i - 1].at(0));
  }
  // 6: scale, class, percent
  const auto pushed = output.table("6. An intervention", "   scale ");
  REQUIRE(pushed.size() == 4);
  for (std::size_t i = 1; i < pushed.size(); ++i) CHECK(pushed[i].at(2) > pushed[i - 1].at(2));
  CHECK(pushed.front().at(2) < 10);
  CHECK(pushed.back().at(2) > 95);
  // 7: k, L0, explained variance, loss recovered
  const auto sweep = output.table("loss recovered", "  ");
  REQUIRE(sweep.size() == 5);
  for (std::size_t i = 0; i < sweep.size(); ++i) {
    CHECK(sweep[i].at(1) <= sweep[i].at(0));
    if (i > 0) CHECK(sweep[i].at(1) > sweep[i - 1].at(1));
    if (i > 0) CHECK(sweep[i].at(3) > sweep[i - 1].at(3));
  }
  CHECK(sweep.front().at(3) < 0.6);
  CHECK(sweep.at(3).at(3) > 0.95);
}

/// Words alike, numbers within 5 % or 0.01: they depend a little on the compiler's and the CPU's order of sums.
void check_same(const std::string& printed, const std::string& told) {
  INFO("printed: " << printed << "\nguide:   " << told << "\n(scripts/update_guide.sh puts the guide right)");
  const TakenApart a(printed), b(told);
  CHECK(a.words == b.words);
  REQUIRE(a.numbers.size() == b.numbers.size());
  for (std::size_t i = 0; i < a.numbers.size(); ++i)
    CHECK(std::abs(a.numbers[i] - b.numbers[i]) <= std::max(0.01, 0.05 * std::abs(b.numbers[i])));
}

}  // namespace

TEST_CASE("walkthrough: the figures of its story, and the guide prints what it prints", "[examples]") {
  const ExampleOutput output = sae_test::run_example("walkthrough");
  check_figures(output);

  const std::filesystem::path root = std::filesystem::path(SAE_TEST_DATA) / ".." / "..";
  const std::string guide = sae_test::file_text(root / "docs" / "guide.md");
  std::string told;
  for (const std::string& block : blocks_of(guide, "text")) told += block;
  const std::vector<std::string> lines = sae_test::lines_of(told);
  REQUIRE(lines.size() == output.lines().size());
  for (std::size_t i = 0; i < lines.size(); ++i) check_same(output.lines()[i], lines[i]);

  const std::string program = squeezed(sae_test::file_text(root / "examples" / "walkthrough.cpp"));
  const std::vector<std::string> code = blocks_of(guide, "cpp");
  CHECK(code.size() >= 5);
  for (const std::string& block : code) {
    INFO("in docs/guide.md, but not in examples/walkthrough.cpp:\n" << block);
    CHECK(program.find(squeezed(block)) != std::string::npos);
  }
}

#endif

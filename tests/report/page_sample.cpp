// page_sample LATENTS PAGE [JSON]: a dashboard of made-up codes for tests/report/page_test.py, with tokens and labels that would be markup if they were
// let. A PAGE that ends in .html is one file, any other a folder; JSON is what `sae dashboard --json` would print.
#include <sae/report/dashboard.hpp>

#include <cstdlib>
#include <iostream>

using namespace sae;

namespace {

std::string piece(Token token) {
  static const std::vector<std::string> words = {"</script><script>alert(1)</script>",
                                                 "<img src=x onerror=alert(1)>",
                                                 "\n",
                                                 "\\n",
                                                 "\t",
                                                 "\r\n",
                                                 "\xFF\xFE",
                                                 "\xE2",
                                                 "a\xE2\x80\xA8z",
                                                 "\xE2\x80\xAE"
                                                 "abc",
                                                 "&amp;",
                                                 "\"'`",
                                                 "<!--",
                                                 " captain",
                                                 " the",
                                                 " said",
                                                 "ing",
                                                 "\xE6\x9C\x88",
                                                 "__proto__",
                                                 " "};
  return static_cast<std::size_t>(token) < words.size() ? words[static_cast<std::size_t>(token)]
                                                        : sae::detail::concat(" word", token);
}

}  // namespace

int main(int count, char** words) try {
  if (count < 3) throw_value("usage: page_sample LATENTS PAGE [JSON]");
  const Index latents = std::atoll(words[1]), rows = 30'000, window = 100, active = 16, width = 32;
  Random random(1);
  RecordedCodes recorded(latents, {.intervals = 8});
  for (Index first = 0; first < rows; first += 1000) {
    Codes<float> codes(latents);
    std::vector<RowOrigin> origins;
    for (Index b = first; b < first + 1000; ++b) {
      std::set<Index> on;  // low latents fire often, the last sixteenth never
      for (Index n = 0; n < active; ++n)
        on.insert(static_cast<Index>(std::pow(random.uniform(), 3) * static_cast<double>(latents) * 15 / 16));
      for (const Index i : on) codes.push(i, static_cast<float>(random.uniform(0.001, 1) * static_cast<double>(1 + i % 40)));
      codes.finish_row();
      const Index place = b % window;
      origins.push_back({static_cast<Token>(random.below(2000) % (random.below(2) == 0 ? 20 : 2000)),
                         static_cast<std::int32_t>(b / window), static_cast<std::int32_t>(place + place / 37)});
    }
    recorded.add(std::move(codes), origins);
  }
  Matrix<float> directions(latents, width), unembedding(2000, width);
  for (Matrix<float>* m : {&directions, &unembedding})
    for (Index i = 0; i < m->size(); ++i) m->data()[i] = static_cast<float>(random.normal());
  DashboardInput input{.sae = "sample </script> <b>of</b> " + std::to_string(latents),
                       .architecture = "topk, k = 16",
                       .model = "<i>none</i>",
                       .site = "residual-0"};
  for (Index i = 0; i < latents; ++i) input.latents.push_back(i);
  input.token_text = piece;
  input.unembedding = &unembedding;
  for (Index i = 3; i < latents; i += 50) input.labels[i] = sae::detail::concat("label <img src=x onerror=alert(1)> & ", i);
  const Dashboard dashboard = make_dashboard(std::move(recorded), directions, std::move(input));
  const std::filesystem::path page = words[2];
  if (page.extension() == ".html")
    write_dashboard_file(page, dashboard, {.overwrite = true});
  else
    write_dashboard_folder(page, dashboard, {.overwrite = true});
  if (count > 3) save_json(words[3], dashboard_json(dashboard), {.overwrite = true});
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

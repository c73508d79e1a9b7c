#include <sae/metrics/comparison.hpp>

#include <algorithm>
#include <numeric>

#include "sae_argument.hpp"

namespace sae::cli {

namespace {

struct CompareVerb : Common {
  std::vector<std::string> saes;
  ComparisonOptions how;
  Index count = 10;
};

void run_compare(const CompareVerb& options) {
  if (options.how.split > options.how.shared) usage_error("--split is above --shared");
  Threads threads(options.threads);
  const AnySae a = open_any(options, options.saes[0], WeightsIn::memory),
               b = open_any(options, options.saes[1], WeightsIn::memory);
  if (a.d_out() != b.d_out())
    throw_shape(options.saes[1], ": writes rows of ", b.d_out(), " numbers, ", options.saes[0], " of ", a.d_out());
  if (a.site() && b.site() && *a.site() != *b.site())
    note(options, "sae: warning: the two are of ", to_string(*a.site()), " and ", to_string(*b.site()));
  const DictionaryComparison found = compare_dictionaries(a.W_dec(), b.W_dec(), options.how, threads);

  // Those of a that most of b stand for, then those that are least in b.
  std::vector<Index> split(static_cast<std::size_t>(a.latents())), alone(split.size());
  std::iota(split.begin(), split.end(), 0);
  alone = split;
  const auto parts = [&](Index i) { return found.parts[static_cast<std::size_t>(i)]; };
  const auto cosine = [&](Index i) { return found.of_a.cosine[static_cast<std::size_t>(i)]; };
  std::stable_sort(split.begin(), split.end(), [&](Index i, Index j) { return parts(i) > parts(j); });
  std::stable_sort(alone.begin(), alone.end(), [&](Index i, Index j) { return cosine(i) < cosine(j); });
  const auto shown = static_cast<std::size_t>((std::min)(options.count, a.latents()));

  if (options.json) {
    Json nearest = Json::array();
    for (std::size_t i = 0; i < found.of_a.nearest.size(); ++i)
      nearest.push_back(
          {{"latent", i}, {"nearest", found.of_a.nearest[i]}, {"cosine", found.of_a.cosine[i]}, {"parts", found.parts[i]}});
    print_json({{"latents_a", a.latents()},
                {"latents_b", b.latents()},
                {"mmcs_a", found.mmcs_a},
                {"mmcs_b", found.mmcs_b},
                {"mcc", std::isnan(found.mcc) ? Json(nullptr) : Json(found.mcc)},
                {"shared_a", found.shared_a},
                {"shared_b", found.shared_b},
                {"mutual", found.mutual},
                {"split_latents", found.split_latents()},
                {"nearest_of_a", nearest}});
    return;
  }
  const auto share = [](Index n, Index of) {
    return sae::detail::concat(n, " of ", of, " (", rounded(100.0 * static_cast<double>(n) / static_cast<double>(of)), " %)");
  };
  std::string splits, unique;
  for (std::size_t n = 0; n < shown && parts(split[n]) > 1; ++n)
    splits += sae::detail::concat(splits.empty() ? "" : ", ", split[n], " (", parts(split[n]), ")");
  for (std::size_t n = 0; n < shown && cosine(alone[n]) < options.how.shared; ++n)
    unique += sae::detail::concat(unique.empty() ? "" : ", ", alone[n], " (", rounded(cosine(alone[n])), ")");
  std::vector<std::pair<std::string, std::string>> table = {
      {"mean max cosine, A in B", rounded(found.mmcs_a)},
      {"mean max cosine, B in A", rounded(found.mmcs_b)},
      {"mean cosine of one-to-one pairs (MCC)", std::isnan(found.mcc) ? "not computed: --most-pairs" : rounded(found.mcc)},
      {sae::detail::concat("latents of A in B (cosine >= ", options.how.shared, ")"), share(found.shared_a, a.latents())},
      {"latents of B in A", share(found.shared_b, b.latents())},
      {"nearest to each other", sae::detail::concat(found.mutual)},
      {sae::detail::concat("latents of A that several of B stand for (>= ", options.how.split, ")"),
       share(found.split_latents(), a.latents())},
  };
  if (!splits.empty()) table.emplace_back("most of them (parts)", splits);
  if (!unique.empty()) table.emplace_back("least in B (cosine)", unique);
  print_table(table);
}

}  // namespace

void add_compare(CLI::App& program) {
  const auto options = std::make_shared<CompareVerb>();
  CLI::App& verb = add_verb(program, "compare",
                            "Two SAEs by what their latents write: what both have, what one lacks, what the other splits.",
                            options, run_compare);
  verb.add_option("saes", options->saes, "A and B: trained SAEs or transcoders that write rows of one width")
      ->required()
      ->expected(2);
  verb.add_option("--shared", options->how.shared, "cosine from which on two latents are one")
      ->capture_default_str()
      ->check(within(1e-6, 1));
  verb.add_option("--split", options->how.split, "cosine from which on a latent of B is a part of its nearest in A")
      ->capture_default_str()
      ->check(within(1e-6, 1));
  verb.add_option("--most-pairs", options->how.most_pairs,
                  "one-to-one pairs are looked for where both SAEs have so many latents, or their product is no larger (memory "
                  "for each pair)")
      ->capture_default_str()
      ->check(at_least(0));
  verb.add_option("--count", options->count, "latents listed")->capture_default_str()->check(at_least(0));
  add_json(verb, *options);
}

}  // namespace sae::cli

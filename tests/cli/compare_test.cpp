// sae compare: two dictionaries, as the library compares them.
#include <sae/formats/saelens.hpp>
#include <sae/metrics/comparison.hpp>

#include <algorithm>

#include "catch_compat.hpp"
#include "cli_test.hpp"

#ifdef SAE_TEST_PROGRAM

using namespace sae;
using Catch::Matchers::ContainsSubstring;
using sae_test::json_of;
using sae_test::run_sae;
using sae_test::Workplace;

TEST_CASE("sae compare: what two SAEs share, and what one splits", "[cli]") {
  const Workplace folder;
  const auto random_sae = [](Index width, Index latents, std::uint64_t seed) {
    SparseAutoencoder<Dynamic, Dynamic, ReLU> model(width, latents, ReLU{});
    Random random(seed);
    for (Index i = 0; i < model.W_dec().size(); ++i) model.W_dec().data()[i] = static_cast<float>(random.normal());
    return model;
  };
  const auto a = random_sae(12, 20, 1);
  auto b = random_sae(12, 30, 2);
  for (Index i = 0; i < 8; ++i) b.W_dec().row(29 - i) = 2 * a.W_dec().row(i);  // eight are shared
  b.W_dec().row(3) = a.W_dec().row(0) + 0.1F * b.W_dec().row(3);               // one of them twice
  save_saelens(a, folder.at("a"));
  save_saelens(b, folder.at("b"));
  save_saelens(random_sae(13, 20, 1), folder.at("wide"));

  const DictionaryComparison expected = compare_dictionaries(a.W_dec(), b.W_dec());
  const auto found = json_of(run_sae({"compare", folder.at("a"), folder.at("b"), "--json"}));
  CHECK(found["latents_a"] == 20);
  CHECK(found["latents_b"] == 30);
  CHECK(found["shared_a"] == 8);
  CHECK(found["shared_a"] == expected.shared_a);
  CHECK(found["shared_b"] == expected.shared_b);
  CHECK(found["split_latents"] == expected.split_latents());
  CHECK(found["mcc"].get<double>() == Approx(expected.mcc).epsilon(1e-9));
  CHECK(found["mmcs_a"].get<double>() == Approx(expected.mmcs_a).epsilon(1e-6));
  CHECK(found["nearest_of_a"][5]["nearest"] == 24);
  CHECK(found["nearest_of_a"][0]["parts"] == expected.parts[0]);
  CHECK(expected.parts[0] >= 2);

  const auto table = run_sae({"compare", folder.at("a"), folder.at("b"), "--most-pairs", "3"});
  CHECK(table.code == 0);
  CHECK_THAT(table.out, ContainsSubstring("8 of 20 (40 %)") && ContainsSubstring("not computed"));
  const auto refused = run_sae({"compare", folder.at("a"), folder.at("wide")});
  CHECK(refused.code == 1);
  CHECK_THAT(refused.error(), ContainsSubstring("writes rows of 13 numbers"));
  CHECK(run_sae({"compare", folder.at("a")}).code == 2);
  CHECK(run_sae({"compare", folder.at("a"), folder.at("b"), "--shared", "0.5", "--split", "0.7"}).code == 2);
}

#endif

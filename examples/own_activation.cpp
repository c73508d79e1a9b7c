// An activation of one's own: written, trained, saved, loaded. docs/extending.md explains it.
#include <sae/formats/saelens.hpp>
#include <sae/sae.hpp>

#include <iostream>

/// f[b,i] = z[b,i] where z[b,i] > share * max(0, largest z of row b), else 0.
struct NearLargest {
  double share = 0.5;  ///< in [0, 1)
  static constexpr std::string_view name = "near_largest";
  void visit_settings(auto&& visitor) const { visitor("share", share); }
  void check(sae::Index) const {
    if (!(share >= 0 && share < 1)) sae::throw_value("NearLargest: share = ", share, " is not in [0, 1)");
  }
  bool needs_decoder_norms() const { return false; }
  template <class Scalar>
  using Parameters = sae::NoParameters<Scalar>;  // nothing of its own to train
  template <class Scalar>
  struct Selector {
    Scalar share = 0;
    std::vector<std::vector<std::pair<Scalar, sae::Index>>> rows;  // what is positive
    void begin(const NearLargest& config, const auto& /*parameters*/, auto /*decoder_norms*/, sae::Index count) {
      share = static_cast<Scalar>(config.share);
      rows.assign(static_cast<std::size_t>(count), {});
    }
    Scalar bound(sae::Index) const { return 0; }
    void take(sae::Index row, sae::Index first, std::span<const Scalar> z) {
      for (std::size_t j = 0; j < z.size(); ++j)
        if (z[j] > 0) rows[static_cast<std::size_t>(row)].emplace_back(z[j], first + static_cast<sae::Index>(j));
    }
    static void merge(std::span<Selector>) {}  // rows do not compete
    void emit(sae::Index row, auto& active, auto& /*band*/) const {
      const auto& positive = rows[static_cast<std::size_t>(row)];
      const Scalar largest = positive.empty() ? 0 : std::ranges::max(positive).first;
      for (const auto& [z, latent] : positive)
        if (z > share * largest) active.push(latent, z, z);
    }
  };
  void backward(const auto& at, const auto&, auto&) const { std::ranges::copy(at.df, at.dz.begin()); }  // df/dz = 1
};
template <>
struct sae::SaelensLayout<NearLargest> {  // how it stands in cfg.json
  static constexpr std::string_view architecture = "near_largest";
  static NearLargest read(const SaelensConfig& config) { return {json_number(config.json, "share", config.file)}; }
  static void write(const NearLargest& a, nlohmann::ordered_json& json) { json["share"] = a.share; }
};

int main(int argc, char** argv) {
  const std::string folder = argc > 1 ? argv[1] : "near_largest_sae";
  const sae::SyntheticWorld world({.num_features = 128, .hidden_dim = 32, .firing_probability = sae::ConstantFiring{0.02}});
  sae::SyntheticSource source(world, {.seed = 1}), held_out(world, {.seed = 2});
  sae::SparseAutoencoder model(32, 256, NearLargest{.share = 0.4});
  sae::Trainer(model, {.tokens = 400'000, .learning_rate = 3e-3}, sae::Objective<>{}).fit(source);
  sae::save_saelens(model, folder, {}, {.overwrite = true});
  const auto loaded = sae::load_saelens<decltype(model)>(folder);
  const auto report = sae::evaluate(loaded, held_out, {.rows = 20'000});
  std::cout << "share:                " << loaded.activation().share << "\nactive latents a row: " << report.l0
            << "\nexplained variance:   " << report.explained_variance << "\n";
}

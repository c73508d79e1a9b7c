// An activation of one's own: written, trained, saved, loaded. docs/extending.md explains it.
#include <sae/formats/saelens.hpp>
#include <sae/sae.hpp>

#include <filesystem>
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
  class Selector {
   public:
    void begin(const NearLargest& config, const Parameters<Scalar>&, std::span<const Scalar>, sae::Index rows) {
      share_ = static_cast<Scalar>(config.share);
      rows_.assign(static_cast<std::size_t>(rows), {});
    }
    Scalar bound(sae::Index row) const { return share_ * rows_[static_cast<std::size_t>(row)].largest; }
    void take(sae::Index row, sae::Index first, std::span<const Scalar> z) {
      auto& [largest, kept] = rows_[static_cast<std::size_t>(row)];
      for (std::size_t j = 0; j < z.size(); ++j) {
        if (!(z[j] > share_ * largest)) continue;
        kept.push_back({first + static_cast<sae::Index>(j), z[j]});
        largest = std::max(largest, z[j]);
      }
    }
    static void merge(std::span<Selector>) {}  // rows do not compete
    void emit(sae::Index row, sae::Entries<Scalar>& active, sae::Entries<Scalar>&) {
      for (const auto& [latent, z] : rows_[static_cast<std::size_t>(row)].kept)
        if (z > bound(row)) active.push(latent, z, z);
    }

   private:
    struct Row {
      Scalar largest = 0;
      std::vector<std::pair<sae::Index, Scalar>> kept;
    };
    Scalar share_ = 0;
    std::vector<Row> rows_;
  };

  template <class Scalar>
  void backward(const sae::Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>&) const {
    std::copy(at.df.begin(), at.df.end(), at.dz.begin());  // df/dz = 1 at the active entries
  }
};

/// How it stands in cfg.json.
template <>
struct sae::SaelensLayout<NearLargest> {
  static constexpr std::string_view architecture = "near_largest";
  static NearLargest read(const SaelensConfig& config) { return {json_number(config.json, "share", config.file)}; }
  static void write(const NearLargest& a, nlohmann::ordered_json& json) { json["share"] = a.share; }
};

int main(int argc, char** argv) {
  const std::filesystem::path folder = argc > 1 ? argv[1] : "near_largest_sae";
  const sae::SyntheticWorld world({.num_features = 128, .hidden_dim = 32, .firing_probability = sae::ConstantFiring{0.02}});
  sae::SyntheticSource source(world, {.seed = 1}), held_out(world, {.seed = 2});

  sae::SparseAutoencoder model(32, 256, NearLargest{.share = 0.4});
  sae::Trainer trainer(model, {.tokens = 400'000, .learning_rate = 3e-3}, sae::Objective<>{});
  trainer.fit(source);
  sae::save_saelens(model, folder, {}, {.overwrite = true});

  const auto loaded = sae::load_saelens<decltype(model)>(folder);
  const auto report = sae::evaluate(loaded, held_out, {.rows = 20'000});
  std::cout << "share:                " << loaded.activation().share << "\n"
            << "active latents a row: " << report.l0 << "\n"
            << "explained variance:   " << report.explained_variance << "\n";
}

#pragma once
// A rank over the whole batch, as small as it can be: what the seam has to carry in `merge`.
#include <sae/activations/selection.hpp>

#include <algorithm>
#include <limits>
#include <string_view>
#include <vector>

namespace sae_test {

using sae::Index;

/// f = z where z is positive and z (or z |W_dec[i]|) among the k B largest of the batch; ties go to the lower (row, latent).
/// Source: Bussmann et al. 2024, arXiv:2412.06410.
struct TestBatchTopK {
  Index k = 4;  // mean per row
  bool rank_by_decoder_norm = false;

  static constexpr std::string_view name = "test_batch_topk";
  template <class Visitor>
  void visit_settings(Visitor&& visitor) const {
    visitor("k", k);
    visitor("rank_by_decoder_norm", rank_by_decoder_norm);
  }
  void check(Index latents) const {
    if (k < 1 || k > latents) sae::throw_value("TestBatchTopK: k = ", k, " is not in [1, ", latents, "]");
  }
  bool needs_decoder_norms() const { return rank_by_decoder_norm; }

  template <class Scalar>
  using Parameters = sae::NoParameters<Scalar>;

  template <class Scalar>
  class Selector {
   public:
    void begin(const TestBatchTopK& config, const Parameters<Scalar>&, std::span<const Scalar> norms, Index rows) {
      k_ = config.k;
      norms_ = norms;
      rows_.assign(static_cast<std::size_t>(rows), {});
    }
    Scalar bound(Index) const { return Scalar(0); }
    void take(Index row, Index first, std::span<const Scalar> z) {
      for (std::size_t j = 0; j < z.size(); ++j) {
        const Scalar key = norms_.empty() ? z[j] : z[j] * norms_[static_cast<std::size_t>(first) + j];
        if (key > Scalar(0)) rows_[static_cast<std::size_t>(row)].push_back({first + static_cast<Index>(j), key, z[j], true});
      }
    }
    static void merge(std::span<Selector> blocks) {
      std::vector<Kept*> all;  // by (row, latent), so that a stable order of keys breaks ties
      Index wanted = 0;
      for (Selector& block : blocks)
        for (auto& row : block.rows_) {
          wanted += block.k_;
          for (Kept& e : row) all.push_back(&e);
        }
      std::stable_sort(all.begin(), all.end(), [](const Kept* a, const Kept* b) { return a->key > b->key; });
      for (std::size_t t = 0; t < all.size(); ++t) all[t]->chosen = static_cast<Index>(t) < wanted;
    }
    void emit(Index row, sae::Entries<Scalar>& active, sae::Entries<Scalar>&) {
      for (const Kept& e : rows_[static_cast<std::size_t>(row)])
        if (e.chosen) active.push(e.latent, e.z, e.z);
    }

   private:
    struct Kept {
      Index latent;
      Scalar key, z;
      bool chosen;
    };
    Index k_ = 0;
    std::span<const Scalar> norms_;
    std::vector<std::vector<Kept>> rows_;
  };

  template <class Scalar>
  void backward(const sae::Backward<Scalar>& at, const Parameters<Scalar>&, Parameters<Scalar>&) const {
    for (std::size_t e = 0; e < at.dz.size(); ++e) at.dz[e] = at.df[e];
  }
};

}  // namespace sae_test

#pragma once
#include <sae/activations/glu.hpp>
#include <sae/formats/saelens.hpp>

#include <algorithm>
#include <array>
#include <string_view>

namespace sae::inline SAE_ABI {

/// A GLU encoder in SAELens' layout, which has none: "glu_" and the architecture of the activation behind it, "glu_topk", with that
/// one's settings and tensors, and the tensors `W_glu` [F x D_in] and `b_glu` [F]. SAELens itself does not read it.
///
///   save_saelens(model, "my_sae");  auto loaded = load_saelens<decltype(model)>("my_sae");
template <class Inner>
  requires(!requires { SaelensLayout<Inner>::reads; })
struct SaelensLayout<Glu<Inner>> {
 private:
  static constexpr std::string_view prefix = "glu_", behind = SaelensLayout<Inner>::architecture;
  static constexpr auto text = [] {
    std::array<char, prefix.size() + behind.size()> out{};
    std::copy(behind.begin(), behind.end(), std::copy(prefix.begin(), prefix.end(), out.begin()));
    return out;
  }();

 public:
  static constexpr std::string_view architecture{text.data(), text.size()};
  static Glu<Inner> read(const SaelensConfig& config) { return {.inner = SaelensLayout<Inner>::read(config)}; }
  template <class Parameters>
  static void write(const Glu<Inner>& glu, const Parameters& own, nlohmann::ordered_json& json) {
    detail::write_saelens_settings(glu.inner, own.inner, json);
  }
};

}  // namespace sae::inline SAE_ABI

#pragma once
#include <sae/host/language_model.hpp>

#include <charconv>
#include <optional>
#include <string>
#include <string_view>

namespace sae::inline SAE_ABI {

/// The site that a hook of TransformerLens names: "blocks.L.hook_resid_post" is the residual stream after layer L,
/// "blocks.L.hook_resid_pre" that after layer L - 1 (none for L = 0, which is the embedding), "blocks.L.hook_mlp_out" and
/// "blocks.L.hook_attn_out" what the layer adds to it. Also takes our own names ("residual-15"). Nothing where the name is
/// another one.
inline std::optional<Site> site_of_hook(std::string_view name) {
  constexpr std::string_view blocks = "blocks.";
  if (!name.starts_with(blocks)) {
    try {
      return parse_site(name);
    } catch (const ValueError&) {
      return std::nullopt;
    }
  }
  name.remove_prefix(blocks.size());
  std::int32_t layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc() || layer < 0) return std::nullopt;
  name.remove_prefix(static_cast<std::size_t>(end - name.data()));
  if (name == ".hook_resid_post") return Site{layer, SiteKind::residual};
  if (name == ".hook_resid_pre" && layer > 0) return Site{layer - 1, SiteKind::residual};
  if (name == ".hook_mlp_out") return Site{layer, SiteKind::mlp_out};
  if (name == ".hook_attn_out") return Site{layer, SiteKind::attn_out};
  return std::nullopt;
}

/// The name that TransformerLens, and with it SAELens, gives to a site: "blocks.15.hook_resid_post".
inline std::string hook_of_site(const Site& site) {
  const std::string_view hook = site.kind == SiteKind::residual  ? "hook_resid_post"
                                : site.kind == SiteKind::mlp_out ? "hook_mlp_out"
                                                                 : "hook_attn_out";
  return detail::concat("blocks.", site.layer, ".", hook);
}

}  // namespace sae::inline SAE_ABI

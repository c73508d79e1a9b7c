#pragma once
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>
#include <sae/files/output.hpp>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace sae::inline SAE_ABI {

/// Writes a direction as a control vector of llama.cpp (GGUF, architecture "controlvector"), whole or not at all: with
/// `llama-cli --control-vector FILE` the residual stream after layer `layer` becomes x + direction, as an intervention here that adds it.
/// \param layer       counts from 0, as everywhere here; llama.cpp applies none after layer 0
/// \param model_hint  architecture of the model it was made for ("llama"), which llama.cpp does not check; empty: not said
/// \throws ValueError  layer < 1, an empty direction, or one that is not finite.
/// Source: llama.cpp common/common.cpp (common_control_vector_load_one); GGUF version 3.
inline void save_control_vector(const std::filesystem::path& path, std::span<const float> direction, Index layer,
                                std::string_view model_hint = "", OutputOptions options = {}) {
  if (layer < 1)
    throw_value("save_control_vector: layer ", layer, " is not at least 1: llama.cpp has no control vector after layer 0");
  if (direction.empty()) throw_value("save_control_vector: the direction has no numbers");
  for (std::size_t j = 0; j < direction.size(); ++j)
    if (!std::isfinite(direction[j])) throw_value("save_control_vector: number ", j, " of the direction is not finite");
  constexpr std::size_t alignment = 32;
  constexpr std::uint32_t of_integer = 4, of_text = 8, of_float32 = 0;
  std::string out = "GGUF";
  const auto number = [&](std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  };
  const auto text = [&](std::string_view value) {
    number(value.size(), 8);
    out += value;
  };
  const auto key = [&](std::string_view name, std::uint32_t type) {
    text(name);
    number(type, 4);
  };
  number(3, 4);                           // version
  number(1, 8);                           // tensors
  number(model_hint.empty() ? 2 : 3, 8);  // keys
  key("general.architecture", of_text);
  text("controlvector");
  key("controlvector.layer_count", of_integer);
  number(1, 4);
  if (!model_hint.empty()) {
    key("controlvector.model_hint", of_text);
    text(model_hint);
  }
  text(detail::concat("direction.", layer));
  number(1, 4);  // axes
  number(direction.size(), 8);
  number(of_float32, 4);
  number(0, 8);  // where its numbers begin, behind the padding
  out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
  OutputFile file(path, options);
  file.write(out);
  file.write(std::as_bytes(direction));
  file.commit();
}

}  // namespace sae::inline SAE_ABI

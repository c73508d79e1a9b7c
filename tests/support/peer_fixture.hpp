#pragma once
// A training run of a peer in tests/data/peers/training: its batches, parameters, gradients and per-step trace.
#include <sae/data/indexed_source.hpp>
#include <sae/files/npy.hpp>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sae_test {

struct PeerRun {
  std::filesystem::path folder;
  nlohmann::json expected;
  sae::Matrix<double> x;  // [10 * rows x D], the batches one behind the other (sparsify: one)
  sae::Index rows = 0, d_in = 0, latents = 0;

  explicit PeerRun(const std::string& name) : folder(std::filesystem::path(SAE_TEST_DATA) / "peers" / "training" / name) {
    std::ifstream(folder / "expected.json") >> expected;
    rows = expected.at("rows").get<sae::Index>();
    d_in = expected.at("d_in").get<sae::Index>();
    latents = expected.at("n_latents").get<sae::Index>();
    const sae::NpyArray file(folder / "x.npy");
    const auto values = file.values<double>();
    x = sae::ConstMatrixMap<double>(values.data(), static_cast<sae::Index>(values.size()) / d_in, d_in);
  }
  /// "init", "grad" or "final" of a tensor; `transposed` where the peer keeps it the other way round.
  sae::Tensor<double> tensor(const std::string& when, const std::string& name, bool transposed) const {
    const sae::NpyArray file(folder / (when + "." + name + ".npy"));
    const auto values = file.values<double>();
    const sae::Index r = file.shape().size() == 2 ? file.shape()[0] : 1, c = file.shape().back();
    sae::Tensor<double> out(transposed ? c : r, transposed ? r : c);
    const sae::ConstMatrixMap<double> in(values.data(), r, c);
    if (transposed) {
      out.map() = in.transpose();
    } else {
      out.map() = in;
    }
    return out;
  }
  sae::MatrixSource<double> source() const { return sae::MatrixSource<double>(x, {.shuffle = false}); }
};

}  // namespace sae_test

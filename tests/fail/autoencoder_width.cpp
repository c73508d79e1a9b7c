// expect: another width than the model's D
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#ifdef SAE_MUST_FAIL
constexpr int width = 63;
#else
constexpr int width = 64;
#endif

sae::Codes<float> call(const sae::SparseAutoencoder<64, 512, sae::TopK>& model) {
  return model.encode(Eigen::Matrix<float, 4, width, Eigen::RowMajor>::Ones());
}

// expect: another scalar type than the model
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#ifdef SAE_MUST_FAIL
using Rows = Eigen::MatrixXd;
#else
using Rows = Eigen::MatrixXf;
#endif

sae::Matrix<float> call(const sae::SparseAutoencoder<64, 512, sae::TopK>& model, const Rows& x) { return model.reconstruct(x); }

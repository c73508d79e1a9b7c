// expect: Scalar is float or double
#include <sae/activations/relu.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#ifdef SAE_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

sae::Index call(const sae::SparseAutoencoder<8, 32, sae::ReLU, Scalar>& model) { return model.latents(); }

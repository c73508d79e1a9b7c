// expect: needs weights that are stored as Scalar
#include <sae/activations/matching_pursuit.hpp>
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>

#ifdef SAE_MUST_FAIL
using Activation = sae::MatchingPursuit;
#else
using Activation = sae::TopK;
#endif

sae::Index call(const sae::SparseAutoencoder<64, 512, Activation, float, sae::bfloat16>& model) { return model.latents(); }

// expect: weights of 8 bits, and those in files, are not trained
#include <sae/activations/topk.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/trainer.hpp>

#include <cstdint>

#ifdef SAE_MUST_FAIL
using Stored = std::int8_t;
#else
using Stored = sae::bfloat16;
#endif
using Model = sae::SparseAutoencoder<64, 512, sae::TopK, float, Stored>;

void call(Model& model) { sae::Trainer trainer(model, sae::TrainerConfig{}, sae::Objective{}); }

#pragma once
// Everything that needs Eigen alone. Files (files/, formats/), plots (report/) and language models (host/llama_cpp.hpp) are
// included by name.
#include <sae/activations/relu.hpp>
#include <sae/activations/topk.hpp>
#include <sae/core/codes.hpp>
#include <sae/core/random.hpp>
#include <sae/core/threads.hpp>
#include <sae/core/types.hpp>
#include <sae/core/version.hpp>
#include <sae/data/indexed_source.hpp>
#include <sae/data/shuffle_buffer.hpp>
#include <sae/data/source.hpp>
#include <sae/data/synthetic.hpp>
#include <sae/interpret/context_text.hpp>
#include <sae/interpret/interventions.hpp>
#include <sae/interpret/recover.hpp>
#include <sae/interpret/top_activations.hpp>
#include <sae/metrics/dictionary.hpp>
#include <sae/metrics/loss_recovered.hpp>
#include <sae/metrics/reconstruction.hpp>
#include <sae/metrics/row_filter.hpp>
#include <sae/models/sparse_autoencoder.hpp>
#include <sae/training/callbacks.hpp>
#include <sae/training/evaluate.hpp>
#include <sae/training/trainer.hpp>

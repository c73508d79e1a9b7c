#pragma once
#include <sae/data/source.hpp>
#include <sae/formats/checkpoint.hpp>
#include <sae/formats/saelens.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "language_model.hpp"
#include "rows.hpp"

namespace sae::cli {

/// Where `train` and `sweep` take their rows from, files or a language model at work, and how many.
struct TrainSourceOptions : ModelVerb {
  TrainSourceOptions() { tokens = 0; }  // of the text: all of it; --tokens is the length of the training
  RowOptions data;
  std::string targets;  ///< of a transcoder; empty: an autoencoder
  std::string order = "shuffled";
  bool keep_bos = false;
  std::string max_norm;  ///< empty: 10x
  Index buffer = 16384;
  std::optional<Index> train_tokens, steps;
  Index batch = 1024;
};
void add_train_source(CLI::App& verb, TrainSourceOptions& options);
/// --tokens, --steps, --batch.
void add_train_length(CLI::App& verb, TrainSourceOptions& options);
/// Refuses options that contradict one another.
void check_train_source(const TrainSourceOptions& options);
/// Rows that are seen in all. \param rows  of one pass over the data; 0: unknown
Index train_length(const TrainSourceOptions& options, Index rows);

/// A source whose kind is known at run time only.
class TrainSource {
 public:
  TrainSource() = default;
  TrainSource(const TrainSource&) = delete;
  TrainSource& operator=(const TrainSource&) = delete;
  virtual ~TrainSource() = default;
  virtual Index width() const = 0;  ///< of a row, a target behind it included
  virtual Index next(Tensor<float>& batch) = 0;
  virtual SourceState state() const = 0;
  virtual void restore(const SourceState& state) = 0;

  Index rows = 0;                         ///< of one pass; 0: unknown
  Index target_width = 0;                 ///< D_out of a transcoder; 0: an autoencoder
  std::function<std::string()> left_out;  ///< rows that a filter dropped so far, in words; empty where there is none
  SaelensMetadata metadata;               ///< what is known about where the rows come from
  std::string model;                      ///< file of the language model that made them; empty: unknown
  Settings settings;                      ///< what fixes them: a resumed training must have the same ones
  /// While it is true a source that takes long may end by `check_stop`; later the batch is finished, for the checkpoint's sake.
  std::shared_ptr<bool> interruptible = std::make_shared<bool>(true);
};

std::unique_ptr<TrainSource> open_train_source(const TrainSourceOptions& options);

}  // namespace sae::cli

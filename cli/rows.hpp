#pragma once
#include <sae/data/npy_source.hpp>
#include <sae/data/paired_rows.hpp>
#include <sae/host/collected_folder.hpp>

#include <optional>
#include <string>

#include "common.hpp"

namespace sae::cli {

/// Rows in files: what --data, --skip-rows and --rows mean.
struct RowOptions : Common {
  std::string data;
  Index skip_rows = 0;
  Index rows = 0;     ///< 0: all
  Index context = 0;  ///< add_context; 0: not given
};

inline CLI::Option* add_rows(CLI::App& verb, RowOptions& options) {
  verb.add_option("--skip-rows,--first-row", options.skip_rows, "rows left out at the start")
      ->capture_default_str()
      ->check(at_least(0));
  verb.add_option("--rows", options.rows, "rows used from there on; 0: all")->capture_default_str()->check(at_least(0));
  return verb.add_option(
      "--data", options.data,
      "rows [N, D]: one .npy file, a folder of them (in the order of their names), or what collect made with "
      "one site; float32, float16, float64, or uint16, which is taken for the bits of bfloat16");
}

/// For verbs that encode: a TemporalSae reads sequences.
inline void add_context(CLI::App& verb, RowOptions& options) {
  verb.add_option(
          "--context", options.context,
          "of a temporal SAE: rows of one sequence, counted from row 0 of --data on; default: a window of what collect made, "
          "else the context_size that the SAE names")
      ->check(at_least(1));
}

/// The rows of --data, mapped.
inline NpyFolder open_rows(const RowOptions& options) { return NpyFolder(rows_path(options.data), {.bfloat16 = true}); }
/// Rows [first, first + count) that --skip-rows and --rows choose. Errors: ValueError where the data has fewer.
struct RowRange {
  Index first = 0, count = 0;
};
inline RowRange chosen_rows(const RowOptions& options, Index all) {
  if (options.skip_rows >= all)
    throw_value(options.data, ": has ", all, " rows", all == 0 ? "" : ", --skip-rows leaves none of them");
  const Index left = all - options.skip_rows;
  if (options.rows > left)
    throw_value(options.data, ": has ", all, " rows, --rows ", options.rows, " after --skip-rows ", options.skip_rows,
                " are more");
  return {options.skip_rows, options.rows > 0 ? options.rows : left};
}

/// The rows of --data and, side by side, those of --targets. \param width  of a target, where it is known; else 0
inline PairedRows<FiniteNpyRows, FiniteNpyRows> pair_with_targets(FiniteNpyRows rows, const std::string& data,
                                                                  const std::string& targets, Index width = 0) {
  FiniteNpyRows other(NpyFolder(rows_path(targets), {.bfloat16 = true}));
  if (other.rows() != rows.rows())
    throw_shape("--targets ", targets, ": has ", other.rows(), " rows, ", data, " has ", rows.rows(),
                "; each row has one target");
  if (width > 0 && other.width() != width)
    throw_shape("--targets ", targets, ": rows are ", other.width(), " wide, the transcoder predicts rows of ", width);
  return {std::move(rows), std::move(other)};
}

}  // namespace sae::cli

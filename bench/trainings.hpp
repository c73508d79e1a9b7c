#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench.hpp"

namespace sae_bench {

/// A training that goes from step to step on `rows`.
class Training {
 public:
  virtual ~Training() = default;
  /// One step; its L0 where it is asked for.
  virtual double step(bool report) = 0;
  virtual Index state_bytes() = 0;  ///< of parameters and what the optimizer keeps
};
struct NamedTraining {
  std::string name;
  std::function<std::unique_ptr<Training>(const Size&, sae::Threads&)> make;
};

/// All of them:
///   NAME                 an architecture with the squared error alone
///   default/NAME         as the recipe of that name trains it; so saelens/NAME, dictionary_learning/NAME
///   l0_N/NAME            thresholds by which N latents of a row are active (of jumprelu as many as 48 more in the window), rate 0
///   optimizer/NAME       topk
const std::vector<NamedTraining>& trainings();
/// \throws ValueError  no such name.
std::unique_ptr<Training> make_training(std::string_view name, const Size& size, sae::Threads& threads);

}  // namespace sae_bench

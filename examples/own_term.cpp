// A term of the loss of one's own. docs/extending.md explains it.
#include <sae/sae.hpp>

#include <iostream>

/// coefficient mean_b sum_i f[b,i]^2: large codes cost more than small ones.
struct CodeEnergy {
  double coefficient = 0.1;  ///< >= 0
  static constexpr std::string_view name = "code_energy";
  void visit_settings(auto&& visitor) const { visitor("coefficient", coefficient); }
  void check(sae::Index /*d_in*/, sae::Index /*latents*/) const {
    sae::require_non_negative("CodeEnergy: coefficient", coefficient);
  }
  bool needs_decoder_norms() const { return false; }

  template <class Step>
  double apply(Step& step, sae::NoSelection&, sae::Threads&) const {
    using Scalar = typename Step::Scalar;
    const auto f = step.main.entries.codes.values();
    const double factor = coefficient / static_cast<double>(step.rows());
    double sum = 0;
    for (std::size_t e = 0; e < f.size(); ++e) {
      sum += static_cast<double>(f[e]) * static_cast<double>(f[e]);
      if (step.wants_gradient) step.main.df[e] += static_cast<Scalar>(2 * factor) * f[e];
    }
    return factor * sum;
  }
};

int main() {
  const sae::SyntheticWorld world({.num_features = 128, .hidden_dim = 32, .firing_probability = sae::ConstantFiring{0.02}});
  for (const double coefficient : {0.0, 0.5}) {
    sae::SyntheticSource source(world, {.seed = 1}), held_out(world, {.seed = 2});
    sae::SparseAutoencoder model(32, 256, sae::TopK{.k = 4});
    sae::Trainer trainer(model, {.tokens = 200'000, .learning_rate = 3e-3},
                         sae::Objective{sae::AuxK{}, CodeEnergy{.coefficient = coefficient}});
    trainer.fit(source);
    const auto report = sae::evaluate(model, held_out, {.rows = 10'000});
    std::cout << "coefficient " << coefficient << ": explained variance " << report.explained_variance << ", norm of x' over x "
              << report.l2_ratio << "\n";
  }
}

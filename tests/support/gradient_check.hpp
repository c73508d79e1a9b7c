#pragma once
// Central differences against the gradients of the library, in double.
#include "reference.hpp"

namespace sae_test {

/// dL/dp of every number of one tensor, where loss() reads it.
template <class Loss>
Dense central_differences(Dense& p, const Loss& loss, double h = 1e-5) {
  Dense out(p.rows(), p.cols());
  for (Index i = 0; i < p.size(); ++i) {
    const double before = p.data()[i];
    p.data()[i] = before + h;
    const double above = loss();
    p.data()[i] = before - h;
    const double below = loss();
    p.data()[i] = before;
    out.data()[i] = (above - below) / (2 * h);
  }
  return out;
}

/// max|got - want| / max|want|. NaN where anything is NaN; where all of `want` is 0, so must `got` be.
template <class A, class B>
double relative_error(const A& got, const B& want) {
  const double difference = largest_difference(got, want), magnitude = largest_magnitude(want);
  return difference == 0 && magnitude == 0 ? 0.0 : difference / magnitude;
}

/// Checks dL/dW_enc, dL/db_enc, dL/dW_dec and dL/db_dec. loss(NaiveModel) must hold every selection and every detached quantity
/// as it is at `model`.
template <class Gradient, class Loss>
void check_gradient(const NaiveModel& model, const Gradient& gradient, const Loss& loss, double bound = 1e-6) {
  NaiveModel moved = model;
  const auto at = [&] { return loss(static_cast<const NaiveModel&>(moved)); };
  CHECK(relative_error(gradient.W_enc.map(), central_differences(moved.W_enc, at)) <= bound);
  if (gradient.b_enc.size() > 0) CHECK(relative_error(gradient.b_enc.map(), central_differences(moved.b_enc, at)) <= bound);
  CHECK(relative_error(gradient.W_dec.map(), central_differences(moved.W_dec, at)) <= bound);
  CHECK(relative_error(gradient.b_dec.map(), central_differences(moved.b_dec, at)) <= bound);
}

}  // namespace sae_test

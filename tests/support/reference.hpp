#pragma once
// Naive twins of what the library computes, in double: triple loops, a sort, dense matrices, one formula a function. Slow and
// plain on purpose: they share no code with what they judge.
#include <sae/core/codes.hpp>
#include <sae/core/random.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace sae_test {

using sae::Index;
using Dense = sae::Matrix<double>;
using Mask = sae::Matrix<std::uint8_t>;  // [B x F], 1 where an entry is meant

/// The parameters of an autoencoder in double.
struct NaiveModel {
  Dense W_enc, W_dec;  // [F x D]
  Dense b_enc, b_dec;  // [1 x F], [1 x D]
  bool subtract_decoder_bias = true;

  Index latents() const { return W_enc.rows(); }
  Index width() const { return W_enc.cols(); }
};
template <class Model>
NaiveModel naive(const Model& model) {
  const auto& p = model.parameters();
  Dense b_enc = Dense::Zero(1, p.latents());  // where the activation has biases of its own
  if (p.b_enc.size() > 0) b_enc = p.b_enc.map().template cast<double>();
  return {p.W_enc.map().template cast<double>(), p.W_dec.map().template cast<double>(), b_enc,
          p.b_dec.map().template cast<double>(), model.subtracts_decoder_bias()};
}

/// z[b,i] = sum_j (x[b,j] - b_dec[j]) W_enc[i,j] + b_enc[i]
inline Dense naive_pre_activations(const NaiveModel& m, const Dense& x) {
  Dense z(x.rows(), m.latents());
  for (Index b = 0; b < x.rows(); ++b)
    for (Index i = 0; i < m.latents(); ++i) {
      double sum = m.b_enc(0, i);
      for (Index j = 0; j < m.width(); ++j) sum += (x(b, j) - (m.subtract_decoder_bias ? m.b_dec(0, j) : 0.0)) * m.W_enc(i, j);
      z(b, i) = sum;
    }
  return z;
}

inline std::vector<double> naive_norms(const Dense& w) {
  std::vector<double> out;
  for (Index i = 0; i < w.rows(); ++i) {
    double squares = 0;
    for (Index j = 0; j < w.cols(); ++j) squares += w(i, j) * w(i, j);
    out.push_back(std::sqrt(squares));
  }
  return out;
}

/// Where z > 0.
inline Mask naive_positive(const Dense& z) {
  Mask out = Mask::Zero(z.rows(), z.cols());
  for (Index i = 0; i < z.size(); ++i) out.data()[i] = z.data()[i] > 0 ? 1 : 0;
  return out;
}
/// The k largest keys z * norm of each row above `floor`, by a sort; ties to the lower latent. `candidates`: [F], 0 where a latent
/// does not compete (empty: all compete); `norms` empty: ranked by z.
inline Mask naive_largest(const Dense& z, Index k, const std::vector<double>& norms = {}, double floor = 0,
                          const std::vector<std::uint8_t>& candidates = {}) {
  Mask out = Mask::Zero(z.rows(), z.cols());
  for (Index b = 0; b < z.rows(); ++b) {
    std::vector<std::pair<double, Index>> keys;
    for (Index i = 0; i < z.cols(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const double key = norms.empty() ? z(b, i) : z(b, i) * norms[at];
      if (key > floor && (candidates.empty() || candidates[at] != 0)) keys.push_back({-key, i});
    }
    std::sort(keys.begin(), keys.end());
    for (std::size_t t = 0; t < keys.size() && static_cast<Index>(t) < k; ++t) out(b, keys[t].second) = 1;
  }
  return out;
}
/// The n largest positive keys z * norm of the whole batch, by a sort, ties by (row, latent); `norms` empty: ranked by z.
inline Mask naive_largest_of_batch(const Dense& z, Index n, const std::vector<double>& norms = {}) {
  Mask out = Mask::Zero(z.rows(), z.cols());
  std::vector<std::pair<double, Index>> keys;
  for (Index at = 0; at < z.size(); ++at) {
    const double key = norms.empty() ? z.data()[at] : z.data()[at] * norms[static_cast<std::size_t>(at % z.cols())];
    if (key > 0) keys.push_back({-key, at});
  }
  std::sort(keys.begin(), keys.end());
  for (std::size_t t = 0; t < keys.size() && static_cast<Index>(t) < n; ++t) out.data()[keys[t].second] = 1;
  return out;
}
/// The largest positive key z * norm of each of k groups of neighbours in each row, ties to the lower latent.
inline Mask naive_group_max(const Dense& z, Index k, const std::vector<double>& norms = {}) {
  Mask out = Mask::Zero(z.rows(), z.cols());
  const Index size = z.cols() / k;
  for (Index b = 0; b < z.rows(); ++b)
    for (Index group = 0; group < k; ++group) {
      double best = 0;
      Index winner = -1;
      for (Index i = group * size; i < (group + 1) * size; ++i) {
        const double key = norms.empty() ? z(b, i) : z(b, i) * norms[static_cast<std::size_t>(i)];
        if (key > best) {
          best = key;
          winner = i;
        }
      }
      if (winner >= 0) out(b, winner) = 1;
    }
  return out;
}

/// Codes: z where the mask says so, 0 elsewhere.
inline Dense naive_codes(const Dense& z, const Mask& active) {
  Dense f = Dense::Zero(z.rows(), z.cols());
  for (Index i = 0; i < z.size(); ++i)
    if (active.data()[i] != 0) f.data()[i] = z.data()[i];
  return f;
}
/// sum_i f[b,i] W_dec[i,j], plus b_dec where asked.
inline Dense naive_decode(const NaiveModel& m, const Dense& f, bool with_bias = true) {
  Dense out(f.rows(), m.width());
  for (Index b = 0; b < f.rows(); ++b)
    for (Index j = 0; j < m.width(); ++j) {
      double sum = with_bias ? m.b_dec(0, j) : 0.0;
      for (Index i = 0; i < m.latents(); ++i) sum += f(b, i) * m.W_dec(i, j);
      out(b, j) = sum;
    }
  return out;
}

/// mean_b sum_j a[b,j]^2
inline double naive_mean_square(const Dense& a) {
  double sum = 0;
  for (Index i = 0; i < a.size(); ++i) sum += a.data()[i] * a.data()[i];
  return sum / static_cast<double>(a.rows());
}
/// mean_b sum_i |f[b,i]| |W_dec[i]|, or without the norm.
inline double naive_l1(const NaiveModel& m, const Dense& f, bool weighted) {
  const std::vector<double> norms = naive_norms(m.W_dec);
  double sum = 0;
  for (Index b = 0; b < f.rows(); ++b)
    for (Index i = 0; i < f.cols(); ++i) sum += std::abs(f(b, i)) * (weighted ? norms[static_cast<std::size_t>(i)] : 1.0);
  return sum / static_cast<double>(f.rows());
}
/// mean_b |r_b - mean r|^2
inline double naive_row_variance(const Dense& r) {
  Dense centred = r;
  for (Index j = 0; j < r.cols(); ++j) {
    double mean = 0;
    for (Index b = 0; b < r.rows(); ++b) mean += r(b, j) / static_cast<double>(r.rows());
    for (Index b = 0; b < r.rows(); ++b) centred(b, j) -= mean;
  }
  return naive_mean_square(centred);
}

/// The selection that codes hold.
template <class Scalar>
Mask mask_of(const sae::Codes<Scalar>& codes) {
  Mask out = Mask::Zero(codes.rows(), codes.latents());
  for (Index b = 0; b < codes.rows(); ++b)
    for (const int i : codes.row_latents(b)) out(b, i) = 1;
  return out;
}

/// Random rows, and a model whose every parameter is random (biases too).
inline Dense random_rows(Index rows, Index width, std::uint64_t seed, double scale = 1) {
  sae::Random random(seed, 77);
  Dense out(rows, width);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = scale * random.normal();
  return out;
}
/// `bias`: mean of b_enc. Far below 0 few latents of a ReLU are active, far above 0 most are.
template <class Model>
void randomise(Model& model, std::uint64_t seed, double bias = 0) {
  using Scalar = typename Model::Scalar;
  auto& p = model.parameters();
  const double scale = 1 / std::sqrt(static_cast<double>(model.d_in()));
  p.W_enc.map() = random_rows(model.latents(), model.d_in(), seed + 1, scale).template cast<Scalar>();
  p.W_dec.map() = random_rows(model.latents(), model.d_in(), seed + 2, scale).template cast<Scalar>();
  if (p.b_enc.size() > 0)
    p.b_enc.map() = (random_rows(1, model.latents(), seed + 3, 0.3).array() + bias).matrix().template cast<Scalar>();
  p.b_dec.map() = random_rows(1, model.d_in(), seed + 4, 0.5).template cast<Scalar>();
}

/// Largest |got - want|; NaN as soon as one number is NaN, so that `<=` fails.
template <class A, class B>
double largest_difference(const A& got, const B& want) {
  if (got.rows() != want.rows() || got.cols() != want.cols()) return std::numeric_limits<double>::quiet_NaN();
  double worst = 0;
  for (Index i = 0; i < got.rows(); ++i)
    for (Index j = 0; j < got.cols(); ++j) {
      const double difference = std::abs(static_cast<double>(got(i, j)) - static_cast<double>(want(i, j)));
      if (!(difference <= worst)) worst = difference;
      if (std::isnan(worst)) return worst;
    }
  return worst;
}
template <class A>
double largest_magnitude(const A& a) {
  return largest_difference(a, Dense::Zero(a.rows(), a.cols()));
}

}  // namespace sae_test

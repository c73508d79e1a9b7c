// A Llama forward pass as the papers write it, in plain loops: the twin that hosts are checked against, and a host itself.
#pragma once
#include <sae/host/language_model.hpp>
#include "tiny_gguf.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sae_test {

/// RMSNorm, rotary positions on neighbouring pairs, grouped-query attention, SwiGLU. Everything is summed in double and stored
/// as float at the sites. Whole sequences only: `continues` is false.
class NaiveLlama {
 public:
  static constexpr bool continues = false;

  explicit NaiveLlama(TinyLlama weights) : w_(std::move(weights)) {}

  sae::ModelShape shape() const {
    return {w_.config.width, w_.config.layers, static_cast<sae::Index>(w_.vocabulary.size()), w_.config.context};
  }
  std::string name() const { return "naive"; }
  sae::Token bos() const { return 1; }
  std::vector<sae::Site> sites() const {
    std::vector<sae::Site> out;
    for (sae::Index l = 0; l < w_.config.layers; ++l)
      for (const auto kind : {sae::SiteKind::attn_out, sae::SiteKind::mlp_out, sae::SiteKind::residual})
        out.push_back({l, kind});
    return out;
  }
  /// One token a letter or a space.
  std::vector<sae::Token> tokenize(std::string_view text) const {
    std::vector<sae::Token> out;
    for (const char c : text) out.push_back(c == ' ' ? 3 : static_cast<sae::Token>(4 + c - 'a'));
    return out;
  }
  std::string token_text(sae::Token token) const { return w_.vocabulary.at(static_cast<std::size_t>(token)); }
  sae::Matrix<float> unembedding() const { return w_.unembedding; }

  sae::ConstMatrixMap<float> run(std::span<const sae::Token> tokens, std::span<const sae::Tap> taps = {},
                                 const sae::RunOptions& options = {}) {
    sae::check_run(shape(), tokens, taps, options);
    if (options.first_position != 0) sae::throw_host("NaiveLlama keeps nothing of the runs before");
    const auto at_site = [&](sae::Index layer, sae::SiteKind kind, sae::Matrix<float>& x) {
      for (const sae::Tap& tap : taps) {
        if (tap.site != sae::Site{layer, kind}) continue;
        sae::Matrix<float> copy = x;
        tap.visit(sae::MatrixMap<float>(copy.data(), copy.rows(), copy.cols()), 0);
        if (tap.edits) x = copy;
      }
    };
    const sae::Index count = static_cast<sae::Index>(tokens.size());
    sae::Matrix<float> residual(count, w_.config.width);
    for (sae::Index t = 0; t < count; ++t) residual.row(t) = w_.embedding.row(tokens[static_cast<std::size_t>(t)]);
    for (sae::Index l = 0; l < w_.config.layers; ++l) {
      const TinyLlama::Layer& layer = w_.layers[static_cast<std::size_t>(l)];
      sae::Matrix<float> attention = attend(layer, normalise(residual, layer.attn_norm));
      at_site(l, sae::SiteKind::attn_out, attention);
      residual += attention;
      const sae::Matrix<float> x = normalise(residual, layer.mlp_norm);
      sae::Matrix<float> gate = product(x, layer.gate);
      const sae::Matrix<float> up = product(x, layer.up);
      for (sae::Index i = 0; i < gate.size(); ++i) {
        const double g = gate.data()[i];
        gate.data()[i] = static_cast<float>(g / (1 + std::exp(-g)) * up.data()[i]);
      }
      sae::Matrix<float> mlp = product(gate, layer.down);
      at_site(l, sae::SiteKind::mlp_out, mlp);
      residual += mlp;
      at_site(l, sae::SiteKind::residual, residual);
    }
    logits_ = product(normalise(residual, w_.output_norm), w_.unembedding);
    const sae::Index v = logits_.cols();
    if (options.logits == sae::Logits::none) return {nullptr, 0, v};
    if (options.logits == sae::Logits::last) return {logits_.data() + (count - 1) * v, 1, v};
    return {logits_.data(), count, v};
  }

 private:
  static sae::Matrix<float> product(const sae::Matrix<float>& x, const sae::Matrix<float>& weight) {
    sae::Matrix<float> out(x.rows(), weight.rows());
    for (sae::Index t = 0; t < x.rows(); ++t)
      for (sae::Index i = 0; i < weight.rows(); ++i) {
        double sum = 0;
        for (sae::Index j = 0; j < x.cols(); ++j) sum += static_cast<double>(x(t, j)) * weight(i, j);
        out(t, i) = static_cast<float>(sum);
      }
    return out;
  }
  sae::Matrix<float> normalise(const sae::Matrix<float>& x, const sae::Matrix<float>& gain) const {
    sae::Matrix<float> out = x;
    for (sae::Index t = 0; t < x.rows(); ++t) {
      double square = 0;
      for (sae::Index j = 0; j < x.cols(); ++j) square += static_cast<double>(x(t, j)) * x(t, j);
      const double scale = 1 / std::sqrt(square / static_cast<double>(x.cols()) + w_.config.epsilon);
      for (sae::Index j = 0; j < x.cols(); ++j) out(t, j) = static_cast<float>(scale * x(t, j) * gain(0, j));
    }
    return out;
  }
  /// x[2i], x[2i+1] of every head turn by t * base^(-2i / head).
  void rotate(sae::Matrix<float>& x, sae::Index head) const {
    for (sae::Index t = 0; t < x.rows(); ++t)
      for (sae::Index j = 0; j < x.cols(); j += 2) {
        const double turn = std::pow(w_.config.rope_base, -static_cast<double>(j % head) / static_cast<double>(head));
        const double angle = static_cast<double>(t) * turn, a = x(t, j), b = x(t, j + 1);
        x(t, j) = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
        x(t, j + 1) = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
      }
  }
  sae::Matrix<float> attend(const TinyLlama::Layer& layer, const sae::Matrix<float>& x) const {
    const sae::Index head = w_.config.width / w_.config.heads, group = w_.config.heads / w_.config.kv_heads;
    sae::Matrix<float> q = product(x, layer.q), k = product(x, layer.k);
    const sae::Matrix<float> v = product(x, layer.v);
    rotate(q, head);
    rotate(k, head);
    sae::Matrix<float> mixed = sae::Matrix<float>::Zero(x.rows(), w_.config.heads * head);
    for (sae::Index t = 0; t < x.rows(); ++t)
      for (sae::Index h = 0; h < w_.config.heads; ++h) {
        std::vector<double> weight;
        double largest = -1e300, sum = 0;
        for (sae::Index s = 0; s <= t; ++s) {
          double dot = 0;
          for (sae::Index j = 0; j < head; ++j) dot += static_cast<double>(q(t, h * head + j)) * k(s, h / group * head + j);
          weight.push_back(dot / std::sqrt(static_cast<double>(head)));
          largest = std::max(largest, weight.back());
        }
        for (double& value : weight) sum += value = std::exp(value - largest);
        for (sae::Index j = 0; j < head; ++j) {
          double value = 0;
          for (sae::Index s = 0; s <= t; ++s) value += weight[static_cast<std::size_t>(s)] / sum * v(s, h / group * head + j);
          mixed(t, h * head + j) = static_cast<float>(value);
        }
      }
    return product(mixed, layer.attn_out);
  }

  TinyLlama w_;
  sae::Matrix<float> logits_;
};

static_assert(sae::LanguageModel<NaiveLlama>);

}  // namespace sae_test

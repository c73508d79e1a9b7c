#pragma once
#include <sae/host/language_model.hpp>

#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What llama.cpp calls back: its log and its evaluation callback. Used by host/llama_cpp.hpp alone.
namespace sae::inline SAE_ABI {

namespace detail {

/// The last complaint of llama.cpp on this thread; its log is otherwise dropped.
struct LlamaLog {
  static std::string& first_error() {
    thread_local std::string line;
    return line;
  }
  static void keep(ggml_log_level level, const char* text, void*) {
    std::string& line = first_error();
    if (level != GGML_LOG_LEVEL_ERROR || text == nullptr || !line.empty()) return;
    line = text;
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
    std::replace(line.begin(), line.end(), '\n', ' ');
    const std::size_t function = line.find(": ");  // "llama_model_load: error loading model: ..."
    if (function != std::string::npos && line.rfind("llama_", 0) == 0) line.erase(0, function + 2);
  }
  static std::string because() { return first_error().empty() ? std::string() : ": " + first_error(); }
};

/// ggml ends the process where a file breaks what it takes for granted. During a call that uses no worker threads (loading,
/// tokenizing) its last word becomes an exception instead; elsewhere it is printed, as ggml would.
class LlamaAbort {
 public:
  LlamaAbort() { armed() = true; }
  ~LlamaAbort() { armed() = false; }
  LlamaAbort(const LlamaAbort&) = delete;
  LlamaAbort& operator=(const LlamaAbort&) = delete;

  static void on_abort(const char* message) {
    if (armed()) throw HostError(message);
    std::fprintf(stderr, "%s\n", message);
  }

 private:
  static bool& armed() {
    thread_local bool flag = false;
    return flag;
  }
};

/// Runs a call of llama.cpp: an exception of it becomes one sentence that begins with `what`.
template <class Call>
auto guard_llama(std::string_view what, Call&& call) {
  LlamaLog::first_error().clear();
  try {
    return call();
  } catch (const std::exception& error) {
    throw_host(what, ": ", error.what());
  }
}
/// The same for a call without worker threads: an abort becomes a sentence, too.
template <class Call>
auto guard_llama_abort(std::string_view what, Call&& call) {
  const LlamaAbort armed;
  return guard_llama(what, call);
}

/// What llama.cpp's evaluation callback looks for during a run. ggml asks at each node of the graph whether it is wanted,
/// computes up to a wanted one, and hands it over; what is written into it is what later nodes read.
class LlamaHook {
 public:
  struct Wanted {
    std::string node;
    Site site;
    std::vector<const Tap*> taps;
    bool seen = false;
  };

  void arm(std::vector<Wanted> wanted, Index rows, Index width, Index first_position, bool stop) {
    wanted_ = std::move(wanted);
    left_ = wanted_.size();
    rows_ = rows;
    width_ = width;
    first_position_ = first_position;
    stop_ = stop;
    error_ = nullptr;
  }
  void disarm() {
    wanted_.clear();
    left_ = 0;
    names_ = nullptr;
    stop_ = false;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }
  /// Notes the name of every node of the next runs.
  void list_into(std::vector<std::string>* names) { names_ = names; }
  const std::vector<Wanted>& wanted() const { return wanted_; }

  /// ggml_backend_sched_eval_callback; no exception leaves it.
  static bool on_node(ggml_tensor* node, bool ask, void* self) {
    LlamaHook& hook = *static_cast<LlamaHook*>(self);
    try {
      return hook.visit(node, ask);
    } catch (...) {
      hook.error_ = std::current_exception();
      return false;
    }
  }

 private:
  /// `ask`: is the node wanted? Otherwise it is computed: look at it, and tell whether to go on.
  bool visit(ggml_tensor* node, bool ask) {
    if (names_ && ask) names_->emplace_back(node->name);
    // The end, for each part of a graph that is split over several backends: want its first node, then do not go on.
    if (error_ || (stop_ && left_ == 0)) return ask;
    for (Wanted& wanted : wanted_) {
      if (wanted.seen || wanted.node != node->name) continue;
      if (ask) return true;
      wanted.seen = true;
      --left_;
      hand_over(node, wanted);
      return !(stop_ && left_ == 0);
    }
    return !ask;
  }

  void hand_over(ggml_tensor* node, const Wanted& wanted) {
    if (node->type != GGML_TYPE_F32 || !ggml_is_contiguous(node) || node->ne[0] != width_ || ggml_nrows(node) != rows_)
      throw_host("llama.cpp: node ", wanted.node, " is ", ggml_type_name(node->type), " [", ggml_nrows(node), " x ",
                 node->ne[0], "] where f32 [", rows_, " x ", width_, "] was expected");
    values_.resize(static_cast<std::size_t>(rows_ * width_));
    const std::size_t bytes = values_.size() * sizeof(float);
    ggml_backend_tensor_get(node, values_.data(), 0, bytes);
    bool edited = false;
    for (const Tap* tap : wanted.taps) {
      tap->visit(MatrixMap<float>(values_.data(), rows_, width_), first_position_);
      edited = edited || tap->edits;
    }
    if (edited) ggml_backend_tensor_set(node, values_.data(), 0, bytes);
  }

  std::vector<Wanted> wanted_;
  std::size_t left_ = 0;
  Index rows_ = 0, width_ = 0, first_position_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
  std::vector<std::string>* names_ = nullptr;
  Buffer<float> values_;
};

}  // namespace detail

}  // namespace sae::inline SAE_ABI

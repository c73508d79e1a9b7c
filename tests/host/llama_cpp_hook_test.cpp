// The evaluation callback by itself: what it wants, when it stops, what it refuses.
#include <sae/host/llama_cpp_hook.hpp>

#include <memory>
#include <string>
#include <vector>

#include "catch_compat.hpp"

using namespace sae;
using Catch::Matchers::ContainsSubstring;

namespace {
/// A node [rows x width] of a graph, on the CPU.
class Node {
 public:
  Node(const char* name, Index rows, Index width, ggml_type type = GGML_TYPE_F32)
      : context_(ggml_init({ggml_tensor_overhead() * 2, nullptr, true}), ggml_free),
        backend_(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr), ggml_backend_free),
        tensor_(ggml_new_tensor_2d(context_.get(), type, width, rows)),
        memory_(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()), ggml_backend_buffer_free) {
    ggml_set_name(tensor_, name);
    const std::vector<char> zeros(ggml_nbytes(tensor_));
    ggml_backend_tensor_set(tensor_, zeros.data(), 0, zeros.size());
  }
  bool asked(detail::LlamaHook& hook) { return detail::LlamaHook::on_node(tensor_, true, &hook); }
  bool computed(detail::LlamaHook& hook) { return detail::LlamaHook::on_node(tensor_, false, &hook); }
  std::vector<float> values() const {
    std::vector<float> out(ggml_nbytes(tensor_) / sizeof(float));
    ggml_backend_tensor_get(tensor_, out.data(), 0, ggml_nbytes(tensor_));
    return out;
  }

 private:
  std::unique_ptr<ggml_context, void (*)(ggml_context*)> context_;
  std::unique_ptr<ggml_backend, void (*)(ggml_backend_t)> backend_;
  ggml_tensor* tensor_;
  std::unique_ptr<ggml_backend_buffer, void (*)(ggml_backend_buffer_t)> memory_;
};

const Tap ones{{0, SiteKind::residual}, [](MatrixMap<float> x, Index) { x.setOnes(); }, true};
const Tap looks{{1, SiteKind::residual}, [](MatrixMap<float>, Index) {}};
}  // namespace

TEST_CASE("only wanted nodes are looked at, each once, and the last one ends a pass that stops", "[host][llama_cpp_hook]") {
  for (const bool stop : {false, true}) {
    detail::LlamaHook hook;
    hook.arm({{"l_out-0", ones.site, {&ones}}, {"l_out-1", looks.site, {&looks}}}, 2, 3, 0, stop);
    Node other("ffn_out-0", 2, 3), first("l_out-0", 2, 3), again("l_out-0", 2, 3), second("l_out-1", 2, 3);
    CHECK_FALSE(other.asked(hook));
    CHECK(first.asked(hook));
    CHECK(first.computed(hook));
    CHECK(first.values() == std::vector<float>(6, 1.0F));
    CHECK_FALSE(again.asked(hook));  // some graphs use a name twice; the first is the site
    CHECK(second.asked(hook));
    CHECK(second.computed(hook) == !stop);
    CHECK(second.values() == std::vector<float>(6, 0.0F));
    CHECK(other.asked(hook) == stop);  // a later part of the graph ends at its first node
    if (stop) CHECK_FALSE(other.computed(hook));
    CHECK_NOTHROW(hook.disarm());
    CHECK_FALSE(first.asked(hook));
  }
}

TEST_CASE("an exception stays in the hook until the run is over", "[host][llama_cpp_hook]") {
  const Tap throws{{0, SiteKind::residual}, [](MatrixMap<float>, Index) { throw std::string("mine"); }, true};
  detail::LlamaHook hook;
  hook.arm({{"l_out-0", throws.site, {&throws}}, {"l_out-1", looks.site, {&looks}}}, 2, 3, 0, false);
  Node first("l_out-0", 2, 3), second("l_out-1", 2, 3);
  CHECK(first.asked(hook));
  CHECK_FALSE(first.computed(hook));
  CHECK(second.asked(hook));
  CHECK_FALSE(second.computed(hook));
  CHECK_THROWS_AS(hook.disarm(), std::string);
  CHECK_NOTHROW(hook.disarm());
}

TEST_CASE("a node of another type or shape is refused", "[host][llama_cpp_hook]") {
  struct Case {
    Index rows, width;
    ggml_type type;
    std::string words;
  };
  for (const Case& c : {Case{2, 4, GGML_TYPE_F32, "f32 [2 x 4] where f32 [2 x 3]"}, Case{1, 3, GGML_TYPE_F32, "f32 [1 x 3]"},
                        Case{2, 3, GGML_TYPE_F16, "f16 [2 x 3]"}}) {
    detail::LlamaHook hook;
    hook.arm({{"l_out-0", ones.site, {&ones}}}, 2, 3, 0, false);
    Node node("l_out-0", c.rows, c.width, c.type);
    CHECK(node.asked(hook));
    CHECK_FALSE(node.computed(hook));
    CHECK_THROWS_WITH(hook.disarm(), ContainsSubstring(c.words));
  }
}

TEST_CASE("of several complaints of llama.cpp the first is kept, in one line", "[host][llama_cpp_hook]") {
  std::string& line = detail::LlamaLog::first_error();
  line.clear();
  CHECK(detail::LlamaLog::because().empty());
  detail::LlamaLog::keep(GGML_LOG_LEVEL_INFO, "loading\n", nullptr);
  detail::LlamaLog::keep(GGML_LOG_LEVEL_ERROR, "llama_model_load: error loading model:\nbad magic\n", nullptr);
  detail::LlamaLog::keep(GGML_LOG_LEVEL_ERROR, "failed\n", nullptr);
  CHECK(detail::LlamaLog::because() == ": error loading model: bad magic");
  line.clear();
}

TEST_CASE("an abort of llama.cpp becomes a sentence where no worker threads can be left behind", "[host][llama_cpp_hook]") {
  CHECK_THROWS_WITH(
      detail::guard_llama_abort("m.gguf", []() -> int { return detail::LlamaAbort::on_abort("ggml.c:1: broken"), 0; }),
      "m.gguf: ggml.c:1: broken");
  CHECK(detail::guard_llama_abort("m.gguf", [] { return 7; }) == 7);
}

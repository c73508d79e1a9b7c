// Cross-layer transcoders as others publish them, written here tensor by tensor: predictions by plain loops, and what is refused.
#include <sae/files/torch_writer.hpp>
#include <sae/formats/cross_layer.hpp>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "reference.hpp"
#include "temp_folder.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using sae::Index;
using Any = sae::AnyCrossLayerTranscoder;
namespace fs = std::filesystem;

/// Numbers of one tensor, by its axes.
struct Array {
  std::vector<Index> shape;
  std::vector<float> numbers;
  float at(Index i) const { return numbers[static_cast<std::size_t>(i)]; }
  float at(Index i, Index j) const { return at(i * shape[1] + j); }
  float at(Index i, Index j, Index k) const { return at((i * shape[1] + j) * shape[2] + k); }
};
using Tensors = std::map<std::string, Array>;

void save(const Tensors& tensors, const fs::path& path) {
  sae::SafetensorsWriter out;
  for (const auto& [name, array] : tensors) out.add(name, array.shape, std::span<const float>(array.numbers));
  out.save(path, {.overwrite = true});
}
void write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

constexpr Index L = 3, D = 4, F = 7, B = 9;

/// A small cross-layer transcoder in one of the layouts, a map of tensors for each file.
struct Published {
  bool gemma, skip = false, jumps = false;
  std::map<std::string, Tensors> files;

  explicit Published(bool of_gemma, bool with_skip = false, bool with_thresholds = false)
      : gemma(of_gemma), skip(with_skip), jumps(of_gemma || with_thresholds) {
    sae::Random random(5);
    const auto array = [&](std::vector<Index> shape) {
      Array out{std::move(shape), {}};
      Index n = 1;
      for (const Index axis : out.shape) n *= axis;
      for (Index i = 0; i < n; ++i) out.numbers.push_back(static_cast<float>(random.normal()));
      return out;
    };
    const auto thresholds = [&] {
      Array out = array({F});
      for (float& x : out.numbers) x = 0.5F * std::abs(x);
      return out;
    };
    for (Index l = 0; l < L; ++l) {
      const std::string n = std::to_string(l);
      if (gemma) {
        Tensors& file = files["params_layer_" + n + ".safetensors"];
        file = {{"w_enc", array({D, F})}, {"w_dec", array({F, L, D})}, {"b_enc", array({F})}, {"b_dec", array({D})}};
        file["threshold"] = thresholds();
        if (skip) file["affine_skip_connection"] = array({D, D});
        for (Index i = 0; i < F; ++i)  // nothing to earlier layers
          for (Index j = 0; j < l * D; ++j) file["w_dec"].numbers[static_cast<std::size_t>(i * L * D + j)] = 0;
      } else {
        Tensors& file = files["W_enc_" + n + ".safetensors"];
        file = {{"W_enc_" + n, array({F, D})}, {"b_enc_" + n, array({F})}, {"b_dec_" + n, array({D})}};
        if (jumps) file["threshold_" + n] = thresholds();
        files["W_dec_" + n + ".safetensors"] = {{"W_dec_" + n, array({F, L - l, D})}};
      }
    }
  }
  fs::path save_in(const fs::path& folder) const {
    fs::create_directories(folder);
    for (const auto& [name, tensors] : files) save(tensors, folder / name);
    return folder;
  }
  const Array& of(Index l, const std::string& name, bool decoder = false) const {
    const std::string n = std::to_string(l);
    if (gemma) return files.at("params_layer_" + n + ".safetensors").at(name);
    return files.at((decoder ? "W_dec_" : "W_enc_") + n + ".safetensors").at(name + "_" + n);
  }
  /// f^l [B x F] of rows x [B x L D].
  sae::Matrix<float> codes(Index l, const sae::Matrix<float>& x) const {
    sae::Matrix<float> f(x.rows(), F);
    for (Index b = 0; b < x.rows(); ++b)
      for (Index i = 0; i < F; ++i) {
        float z = of(l, "b_enc").at(i);
        for (Index j = 0; j < D; ++j) z += x(b, l * D + j) * (gemma ? of(l, "w_enc").at(j, i) : of(l, "W_enc").at(i, j));
        f(b, i) = z > (jumps ? of(l, "threshold").at(i) : 0.0F) ? z : 0.0F;
      }
    return f;
  }
  /// What the latents of layer l add to layer m.
  void add(Index l, Index m, const sae::Matrix<float>& f, sae::Matrix<float>& out) const {
    for (Index b = 0; b < f.rows(); ++b)
      for (Index i = 0; i < F; ++i)
        for (Index j = 0; j < D; ++j)
          out(b, m * D + j) += f(b, i) * (gemma ? of(l, "w_dec").at(i, m, j) : of(l, "W_dec", true).at(i, m - l, j));
  }
  sae::Matrix<float> predictions(const sae::Matrix<float>& x) const {
    sae::Matrix<float> out = sae::Matrix<float>::Zero(x.rows(), L * D);
    for (Index m = 0; m < L; ++m) {
      for (Index b = 0; b < x.rows(); ++b)
        for (Index j = 0; j < D; ++j) {
          out(b, m * D + j) += of(m, "b_dec").at(j);
          if (skip)
            for (Index i = 0; i < D; ++i) out(b, m * D + j) += x(b, m * D + i) * of(m, "affine_skip_connection").at(i, j);
        }
      for (Index l = 0; l <= m; ++l) add(l, m, codes(l, x), out);
    }
    return out;
  }
};

void require_same(const sae::Matrix<float>& is, const sae::Matrix<float>& want) {
  REQUIRE(is.rows() == want.rows());
  REQUIRE(is.cols() == want.cols());
  CHECK((is - want).cwiseAbs().maxCoeff() <= 1e-5F * want.cwiseAbs().maxCoeff());
}
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const sae::FileError& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "nothing was refused";
}
std::string refused(const fs::path& path) {
  return refusal([&] { (void)sae::load_cross_layer<Any>(path); });
}

const sae::Matrix<float> rows = sae_test::random_rows(B, L* D, 3).cast<float>();

const char* const circuit_yaml =
    "model_name: \"google/gemma-2-2b\"\nmodel_kind: \"cross_layer_transcoder\"\nfeature_input_hook: \"hook_resid_mid\"\n"
    "feature_output_hook: \"hook_mlp_out\"\n";

}  // namespace

TEST_CASE("load_cross_layer opens what circuit-tracer reads", "[formats][cross_layer]") {
  for (const bool jumps : {false, true}) {
    CAPTURE(jumps);
    TempFolder temp;
    const Published by(false, false, jumps);
    const fs::path folder = by.save_in(temp / "clt-gemma-2-2b-426k");
    write(folder / "config.yaml", circuit_yaml);
    for (const fs::path& path :
         {folder, folder / "config.yaml", folder / "W_enc_1.safetensors", folder / "W_dec_2.safetensors"}) {
      CAPTURE(path);
      std::vector<std::string> warnings;
      const auto model = sae::load_cross_layer<Any>(path, {.warnings = &warnings});
      CHECK(warnings.empty());
      CHECK(model.layers() == L);
      CHECK(model.d_in() == D);
      CHECK(model.latents() == F);
      CHECK_FALSE(model.has_skip());
      const auto codes = model.encode(rows);
      for (Index l = 0; l < L; ++l) require_same(codes[static_cast<std::size_t>(l)].dense(), by.codes(l, rows));
      require_same(model.predict(rows), by.predictions(rows));
    }
    const auto from = sae::read_published_cross_layer(folder);
    CHECK(from.layout == "circuit_tracer");
    CHECK(from.architecture == (jumps ? "jumprelu_cross_layer_transcoder" : "standard_cross_layer_transcoder"));
    CHECK(from.metadata.model_name == "google/gemma-2-2b");
    CHECK(from.metadata.other.at("feature_input_hook") == "hook_resid_mid");
    CHECK(from.tensors.at("W_dec_1.safetensors: W_dec_1").shape == std::vector<Index>{F, L - 1, D});
    CHECK(from.dtype == "float32");
    // In a type of one's own choice, where it fits.
    using Relu = sae::CrossLayerTranscoder<sae::ReLU, double>;
    if (jumps)
      CHECK_THROWS_WITH(sae::load_cross_layer<Relu>(folder), ContainsSubstring("is a SAE of jumprelu, which does not fit"));
    else
      require_same(sae::load_cross_layer<Relu>(folder).predict(rows.cast<double>()).cast<float>(), by.predictions(rows));
  }
}

TEST_CASE("load_cross_layer opens Gemma Scope 2's, whose decoders name the layer they write to", "[formats][cross_layer]") {
  for (const bool skip : {false, true}) {
    CAPTURE(skip);
    TempFolder temp;
    Published by(true, skip);
    const fs::path folder = by.save_in(temp / "clt" / "width_262k_l0_medium");
    std::vector<std::string> warnings;
    const auto model = sae::load_cross_layer<Any>(folder, {.warnings = &warnings});
    CHECK(warnings.empty());
    CHECK(model.has_skip() == skip);
    require_same(model.predict(rows), by.predictions(rows));
    sae::save_json(folder / "config.json", nlohmann::json{{"architecture", "jump_relu"}, {"model_name", "gemma-v3-1b-pt"}});
    const auto from = sae::read_published_cross_layer(folder / "params_layer_2.safetensors");
    CHECK(from.layout == "gemma_scope_2");
    CHECK(from.architecture == (skip ? "jumprelu_skip_cross_layer_transcoder" : "jumprelu_cross_layer_transcoder"));
    CHECK(from.metadata.model_name == "gemma-v3-1b-pt");

    // It is written and read again as ours, skip and all.
    sae::save_cross_layer(model, temp / "ours");
    const auto again = sae::load_cross_layer<Any>(temp / "ours", {.warnings = &warnings});
    CHECK(warnings.empty());
    CHECK(again.predict(rows) == model.predict(rows));
    CHECK(sae::read_published_cross_layer(temp / "ours").architecture == from.architecture);

    // Numbers for earlier layers are told, and do nothing; a threshold below 0 is as good as 0.
    Tensors& last = by.files.at("params_layer_2.safetensors");
    last.at("w_dec").numbers[1] = -8;
    last.at("threshold").numbers[0] = -1;
    by.save_in(folder);
    const auto odd = sae::load_cross_layer<Any>(folder, {.warnings = &warnings});
    REQUIRE(warnings.size() == 1);
    CHECK_THAT(warnings[0], ContainsSubstring("the largest 8 of layer 2; they are passed over"));
    last.at("w_dec").numbers[1] = 0;
    last.at("threshold").numbers[0] = 0;
    require_same(odd.predict(rows), by.predictions(rows));
  }
}

TEST_CASE("load_cross_layer follows the files that config.yaml lists", "[formats][cross_layer]") {
  TempFolder temp;
  const Published by(true);
  by.save_in(temp / "weights");
  fs::create_directories(temp / "set");
  std::string yaml = circuit_yaml;
  yaml += "transcoders:\n";
  for (Index l = 0; l < L; ++l) yaml += "- ../weights/params_layer_" + std::to_string(l) + ".safetensors\n";
  write(temp / "set" / "config.yaml", yaml);
  require_same(sae::load_cross_layer<Any>(temp / "set").predict(rows), by.predictions(rows));
  CHECK(sae::read_published_cross_layer(temp / "set").metadata.model_name == "google/gemma-2-2b");
  write(temp / "set" / "config.yaml",
        std::string(circuit_yaml) + "transcoders: [\"hf://google/no-such-scope/clt/params_layer_0.safetensors?revision=x\"]\n");
  CHECK_THAT(refused(temp / "set"),
             ContainsSubstring("huggingface-cli download google/no-such-scope clt/params_layer_0.safetensors"));
  write(temp / "set" / "config.yaml", std::string(circuit_yaml) + "transcoders: [3]\n");
  CHECK_THAT(refused(temp / "set"), ContainsSubstring("an item of transcoders = 3 is not the path of a file"));
  // A file of another container, whose decoder lies in another order.
  sae::TorchWriter turned;
  for (const auto& [name, array] : by.files.at("params_layer_0.safetensors"))
    turned.add<float>(name, array.shape, array.numbers,
                      name == "w_dec" ? std::vector<Index>{1, F, F * L} : std::vector<Index>{});
  turned.save(temp / "weights" / "layer.pt");
  write(temp / "set" / "config.yaml", std::string(circuit_yaml) + "transcoders: [../weights/layer.pt]\n");
  CHECK_THAT(refused(temp / "set"), ContainsSubstring("tensor w_dec does not lie row by row"));
}

TEST_CASE("load says what opens a cross-layer transcoder, and opens one layer of it as a transcoder",
          "[formats][cross_layer]") {
  for (const int kind : {0, 1, 2, 3}) {
    const bool gemma = kind >= 2, skip = kind == 3, jumps = kind >= 1;
    CAPTURE(kind);
    TempFolder temp;
    const Published by(gemma, skip, jumps);
    const fs::path folder = by.save_in(temp / "clt" / "x");
    if (!gemma) write(folder / "config.yaml", circuit_yaml);
    const std::string file = gemma ? "params_layer_" : "W_enc_";
    const std::string says = refusal([&] { (void)sae::load(folder); });
    CHECK_THAT(says,
               ContainsSubstring("is a cross-layer transcoder, which load_cross_layer (sae/formats/cross_layer.hpp) opens"));
    CHECK_THAT(says, ContainsSubstring("by its file, " + file + "0.safetensors"));
    CHECK_THAT(refusal([&] { (void)sae::load<sae::AnyTranscoder>(folder); }), ContainsSubstring("which load_cross_layer"));
    CHECK(sae::is_cross_layer(folder));

    sae::Matrix<float> sum = sae::Matrix<float>::Zero(B, L * D);
    for (Index l = 0; l < L; ++l) {
      const fs::path own = folder / (file + std::to_string(l) + ".safetensors");
      CHECK_FALSE(sae::is_cross_layer(own));
      const sae::AnySae layer = sae::load(own);
      CHECK(layer.layout == (gemma ? "gemma_scope_2" : "circuit_tracer"));
      CHECK(layer.architecture() == (skip ? "jumprelu_skip_transcoder" : jumps ? "jumprelu_transcoder" : "transcoder"));
      CHECK(layer.metadata.hook_name == "blocks." + std::to_string(l) + (gemma ? ".ln2.hook_normalized" : ".hook_resid_mid"));
      CHECK(layer.metadata.other.at("hook_name_out") == "blocks." + std::to_string(l) + ".hook_mlp_out");
      REQUIRE(layer.warnings.size() == 1);
      CHECK_THAT(layer.warnings[0], ContainsSubstring("layer " + std::to_string(l) + " of a cross-layer transcoder of 3"));
      const sae::Matrix<float> x = rows.middleCols(l * D, D);
      require_same(layer.encode(x).dense(), by.codes(l, rows));
      sum.rightCols((L - l) * D) += layer.reconstruct(x);
    }
    require_same(sum, by.predictions(rows));  // of all layers
    if (gemma) {
      fs::rename(folder / "params_layer_1.safetensors", temp / "params.safetensors");
      CHECK_THAT(
          refusal([&] { (void)sae::load(temp / "params.safetensors"); }),
          ContainsSubstring("w_dec has shape [7, 3, 4]: it is a layer of a cross-layer transcoder, which one its name says"));
    }
  }
}

TEST_CASE("one layer of a cross-layer transcoder is opened where the others were not fetched", "[formats][cross_layer]") {
  TempFolder temp;
  const Published by(false);
  by.save_in(temp.path());
  for (const char* const name : {"W_enc_0.safetensors", "W_dec_0.safetensors", "W_enc_2.safetensors", "W_dec_2.safetensors"})
    fs::remove(temp / name);
  CHECK(sae::load(temp / "W_dec_1.safetensors").d_out() == 2 * D);
  CHECK_THAT(refused(temp.path()), ContainsSubstring("layer 0 of a cross-layer transcoder of 2 is missing; it would be in "
                                                     "W_enc_0.safetensors"));
}

TEST_CASE("cross-layer transcoders whose files do not fit each other are refused in one sentence", "[formats][cross_layer]") {
  const auto of_circuit = [](const std::function<void(Published&, const fs::path&)>& change) {
    TempFolder temp;
    Published by(false, false, true);
    change(by, temp.path());
    by.save_in(temp.path());
    return refused(temp.path());
  };
  const auto of_gemma = [](const std::function<void(Published&, const fs::path&)>& change) {
    TempFolder temp;
    Published by(true, true);
    change(by, temp.path());
    by.save_in(temp.path());
    return refused(temp.path());
  };
  const auto shaped = [](std::vector<Index> shape) {
    Index n = 1;
    for (const Index axis : shape) n *= axis;
    return Array{std::move(shape), std::vector<float>(static_cast<std::size_t>(n), 0.5F)};
  };
  CHECK(of_circuit([](Published&, const fs::path&) {}) == "nothing was refused");
  CHECK(of_gemma([](Published&, const fs::path&) {}) == "nothing was refused");
  CHECK_THAT(of_circuit([](Published& by, const fs::path&) { by.files.erase("W_enc_1.safetensors"); }),
             ContainsSubstring("layer 1 of a cross-layer transcoder of 3 is missing; it would be in W_enc_1.safetensors"));
  CHECK_THAT(of_circuit([](Published& by, const fs::path&) { by.files.erase("W_dec_1.safetensors"); }),
             ContainsSubstring("W_dec_1.safetensors"));
  CHECK_THAT(
      of_gemma([](Published& by, const fs::path&) { by.files.erase("params_layer_0.safetensors"); }),
      ContainsSubstring("layer 0 of a cross-layer transcoder of 3 is missing; it would be in params_layer_0.safetensors"));
  CHECK_THAT(of_gemma([](Published& by, const fs::path&) { by.files.erase("params_layer_2.safetensors"); }),
             ContainsSubstring("layer 2 of a cross-layer transcoder of 3 is missing"));
  CHECK_THAT(of_gemma([](Published& by, const fs::path&) {
               by.files["params_layer_3.safetensors"] = by.files["params_layer_2.safetensors"];
             }),
             ContainsSubstring("there is a layer 3, and the decoder of layer 0 writes to 3 layers"));
  CHECK_THAT(of_circuit([&](Published& by, const fs::path&) {
               by.files["W_dec_1.safetensors"]["W_dec_1"] = shaped({F, L, D});
             }),
             ContainsSubstring("layer 1 has 4 layers to write to, the earlier ones counted, layer 0 has 3"));
  CHECK_THAT(of_circuit([&](Published& by, const fs::path&) {
               by.files["W_dec_0.safetensors"]["W_dec_0"] = shaped({F, 0, D});
             }),
             ContainsSubstring("tensor W_dec_0 has shape [7, 0, 4], it should be [7, layers, 4]"));
  CHECK_THAT(of_circuit([&](Published& by, const fs::path&) {
               by.files["W_dec_0.safetensors"]["W_dec_0"] = shaped({F, L * D});
             }),
             ContainsSubstring("tensor W_dec_0 has shape [7, 12], it should be [7, layers, 4]"));
  CHECK_THAT(of_circuit([&](Published& by, const fs::path&) {
               by.files["W_enc_2.safetensors"]["W_enc_2"] = shaped({D, F});
             }),
             ContainsSubstring("tensor W_dec_2 has shape [7, 1, 4], it should be [4, layers, 7]"));
  CHECK_THAT(of_circuit([&](Published& by, const fs::path&) { by.files["W_enc_2.safetensors"]["b_enc_2"] = shaped({F + 1}); }),
             ContainsSubstring("tensor b_enc_2 has shape [8], it should be [7]"));
  CHECK_THAT(of_circuit([&](Published& by, const fs::path&) { by.files["W_enc_0.safetensors"]["threshold_0"] = shaped({1}); }),
             ContainsSubstring("tensor threshold_0 has shape [1], it should be [7]"));
  CHECK_THAT(of_circuit([](Published& by, const fs::path&) { by.files["W_enc_0.safetensors"].erase("threshold_0"); }),
             ContainsSubstring("layer 1 is a jumprelu_cross_layer_transcoder, layer 0 a standard_cross_layer_transcoder"));
  CHECK_THAT(
      of_circuit([](Published& by, const fs::path&) { by.files["W_enc_1.safetensors"].at("threshold_1").numbers[2] = -0.25F; }),
      ContainsSubstring("tensor threshold_1: the number at [2] is -0.25; a threshold below 0"));
  CHECK_THAT(of_circuit([](Published& by, const fs::path&) {
               by.files["W_dec_1.safetensors"].at("W_dec_1").numbers[5] = std::numeric_limits<float>::infinity();
             }),
             ContainsSubstring("W_dec_1.safetensors: tensor W_dec_1: the number at [0, 5] is infinite"));
  CHECK_THAT(of_gemma([&](Published& by, const fs::path&) {
               by.files["params_layer_1.safetensors"]["w_dec"] = shaped({F, L + 1, D});
             }),
             ContainsSubstring("layer 1 has 4 layers to write to"));
  CHECK_THAT(of_gemma([&](Published& by, const fs::path&) {
               Tensors& file = by.files["params_layer_1.safetensors"];
               file["w_enc"] = shaped({D + 1, F});
               file["w_dec"] = shaped({F, L, D + 1});
             }),
             ContainsSubstring("layer 1 has 5 numbers in a row, layer 0 has 4"));
  CHECK_THAT(of_gemma([&](Published& by, const fs::path&) {
               Tensors& file = by.files["params_layer_2.safetensors"];
               file["w_enc"] = shaped({D, F - 1});
               file["w_dec"] = shaped({F - 1, L, D});
             }),
             ContainsSubstring("layer 2 has 6 latents, layer 0 has 7"));
  CHECK_THAT(
      of_gemma([](Published& by, const fs::path&) { by.files["params_layer_1.safetensors"].erase("affine_skip_connection"); }),
      ContainsSubstring("layer 1 is a jumprelu_cross_layer_transcoder, layer 0 a jumprelu_skip_cross_layer_transcoder"));
  CHECK_THAT(of_gemma([&](Published& by, const fs::path&) {
               by.files["params_layer_1.safetensors"]["affine_skip_connection"] = shaped({D, D + 1});
             }),
             ContainsSubstring("tensor affine_skip_connection has shape [4, 5], it should be [4, 4]"));

  const auto config = [&](const std::string& yaml) {
    return of_circuit([&](Published&, const fs::path& folder) { write(folder / "config.yaml", yaml); });
  };
  CHECK(config("n_layers: 3\nd_model: 4\nd_transcoder: 7\nactivation_function: jump_relu\n") == "nothing was refused");
  CHECK_THAT(config("n_layers: 99999999999999999999\n"), ContainsSubstring("n_layers = 1e+20 is not that of the tensors, 3"));
  CHECK_THAT(config("d_transcoder: 98304\n"), ContainsSubstring("d_transcoder = 98304 is not that of the tensors, 7"));
  CHECK_THAT(config("model_kind: transcoder_set\n"), ContainsSubstring("model_kind = \"transcoder_set\" is not"));
  CHECK_THAT(config("activation: relu\n"),
             ContainsSubstring("activation = \"relu\" is not \"jump_relu\", as there are thresholds"));
  CHECK_THAT(config("- a list\n"), ContainsSubstring("is no map of settings"));
  CHECK_THAT(config("model_name: [1, 2]\n"), ContainsSubstring("model_name"));
  CHECK_THAT(config("feature_input_hook: &a b\n"), ContainsSubstring("line 1"));

  TempFolder empty;
  const std::string header =
      R"({"w_enc":{"dtype":"F32","shape":[4,0],"data_offsets":[0,0]},"w_dec":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})";
  const auto size = static_cast<std::uint64_t>(header.size());
  write(empty / "params_layer_0.safetensors", std::string(reinterpret_cast<const char*>(&size), sizeof size) + header);
  CHECK_THAT(refused(empty.path()), ContainsSubstring("its encoder has no numbers"));

  TempFolder temp;
  CHECK_THAT(refused(temp / "nothing"), ContainsSubstring("there is no such file or folder"));
  CHECK_THAT(refused(temp.path()), ContainsSubstring("is no cross-layer transcoder; one is a folder with"));
}

TEST_CASE("a cross-layer transcoder's tensors that nothing reads are told", "[formats][cross_layer]") {
  TempFolder temp;
  Published by(false);
  by.files["W_enc_1.safetensors"]["W_skip_1"] = {{1}, {2.0F}};
  for (float& x : by.files["W_dec_2.safetensors"].at("W_dec_2").numbers) x = 0;
  by.save_in(temp.path());
  std::vector<std::string> warnings;
  (void)sae::load_cross_layer<Any>(temp.path(), {.warnings = &warnings});
  REQUIRE(warnings.size() == 2);
  CHECK(warnings[0] == "layer 2: W_dec: 7 of 7 decoder rows are zero, their latents write nothing; the first is latent 0");
  CHECK(warnings[1] == "tensor W_skip_1 is not used");
  CHECK_NOTHROW(sae::check_cross_layer(sae::read_published_cross_layer(temp.path())));
  by.files["W_enc_2.safetensors"].at("b_enc_2").numbers[3] = std::numeric_limits<float>::quiet_NaN();
  by.save_in(temp.path());
  CHECK_THROWS_WITH(sae::check_cross_layer(sae::read_published_cross_layer(temp.path())),
                    ContainsSubstring("tensor b_enc_2: the number at [3] is NaN"));
}

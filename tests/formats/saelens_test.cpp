// SAELens' files: what the peer wrote and computed is what we read and compute; what we write is what the peer writes; files
// that are wrong are refused in one sentence.
#include <sae/files/npy.hpp>
#include <sae/formats/load.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "failing_files.hpp"
#include "peer_codes.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

using sae::Dynamic;
using sae::Index;
template <class Activation, class Scalar = float>
using Sae = sae::SparseAutoencoder<Dynamic, Dynamic, Activation, Scalar>;

using sae_test::peers, sae_test::rows_of, sae_test::require_close;

struct CopiedSae {
  TempFolder folder;
  fs::path path = folder / "sae";
  explicit CopiedSae(const std::string& name) {
    fs::create_directory(path);
    for (const char* file : {"cfg.json", "sae_weights.safetensors"}) fs::copy_file(peers / name / file, path / file);
  }
  nlohmann::json config() const { return sae::read_json(path / "cfg.json"); }
  void set(const nlohmann::json& config) const { sae::save_json(path / "cfg.json", config, {.overwrite = true}); }
  /// Writes the weights anew after `change(tensors)` on name -> tensor.
  template <class F>
  void change_weights(const F& change) const {
    std::map<std::string, sae::Tensor<float>> tensors;
    {
      const sae::SafetensorsFile file(path / "sae_weights.safetensors");
      for (const auto& [name, info] : file.tensors()) tensors[name] = file.read<float>(name);
    }
    change(tensors);
    sae::SafetensorsWriter out;
    for (const auto& [name, t] : tensors) {
      if (t.rows() == 1) {
        out.add(name, {t.cols()}, t);
      } else {
        out.add(name, t);
      }
    }
    out.save(path / "sae_weights.safetensors", {.overwrite = true});
  }
};

std::string error_of(const fs::path& path) {
  try {
    (void)sae::load(path);
  } catch (const sae::FileError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("SAELens: codes and reconstructions of its files are the peer's", "[formats][saelens]") {
  const std::string name =
      GENERATE("saelens_standard", "saelens_standard_no_bdec_input", "saelens_standard_bf16", "saelens_standard_fp16",
               "saelens_standard_from_training", "saelens_standard_expected_average", "saelens_standard_hook_z",
               "saelens_standard_layer_norm", "saelens_standard_constant_norm_rescale", "saelens_topk_layer_norm",
               "saelens_topk", "saelens_topk_rescale", "saelens_topk_from_training", "saelens_topk_plain_from_training",
               "saelens_jumprelu", "saelens_jumprelu_no_bdec_input", "saelens_jumprelu_from_training", "saelens_jumprelu_bf16");
  const std::string kind = name.substr(8, name.find('_', 8) - 8);  // standard, topk, jumprelu
  CAPTURE(name);
  const auto x = rows_of(peers / name / "x.npy");
  const auto codes = rows_of(peers / name / "codes.npy"), recon = rows_of(peers / name / "recon.npy");

  const sae::AnySae any = sae::load(peers / name);
  require_close(any.encode(x).dense(), codes, 1e-5, true);
  require_close(any.decode(any.encode(x), x), recon, 1e-5, false);
  if (any.input_normalisation() == sae::InputNormalisation::none) {
    require_close(any.decode(any.encode(x)), recon, 1e-5, false);
  } else {
    CHECK_THROWS_WITH(any.decode(any.encode(x)), ContainsSubstring("codes alone do not tell how to undo it"));
  }
  require_close(any.reconstruct(x), recon, 1e-5, false);
  CHECK(any.d_in() == 24);
  CHECK(any.latents() == 56);
  CHECK(any.layout == "saelens");
  CHECK(any.architecture() == kind);
  CHECK(any.activation() == (kind == "standard" ? "relu" : kind == "topk" ? "topk, k = 6" : "jumprelu"));
  CHECK(any.dtype == (name.ends_with("bf16") ? "bfloat16" : name.ends_with("fp16") ? "float16" : "float32"));
  CHECK(any.subtracts_decoder_bias() == !name.ends_with("no_bdec_input"));
  CHECK(any.metadata.model_name == "toy-model");
  CHECK(any.metadata.context_size == 8);
  CHECK(any.metadata.prepend_bos == true);
  CHECK(any.metadata.other.at("sae_lens_version") == "6.54.12");
  CHECK(any.tensors.at("W_enc").shape == std::vector<Index>{24, 56});
  CHECK(any.parameters().at("W_enc") == std::vector<Index>{56, 24});
  CHECK(any.config.at("d_sae") == 56);
  CHECK(any.direction(5).size() == 24);
  CHECK(any.direction(5)[3] == any.W_dec()(5, 3));
  CHECK_THROWS_WITH(any.direction(56), "latent 56 is not in [0, 56) (the number of latents)");
  CHECK(any.b_enc().cols() == 56);
  CHECK(any.b_dec().cols() == 24);
  CHECK(any.W_enc().rows() == 56);
  if (name.ends_with("hook_z")) {
    CHECK(!any.site());
    REQUIRE(any.warnings.size() == 1);
    CHECK_THAT(any.warnings[0], ContainsSubstring("hook_z"));
  } else {
    CHECK(any.site() == sae::Site{0, sae::SiteKind::residual});
    CHECK(any.warnings.size() == (name.ends_with("expected_average") ? 1 : 0));
  }

  // By its cfg.json or its weights it is the same; in double it is closer.
  const auto wide_x = x.map().cast<double>().eval();
  if (any.architecture() == "topk") {
    const auto model = sae::load_saelens<Sae<sae::TopK, double>>(peers / name / "cfg.json");
    CHECK_FALSE(model.activation().rank_by_decoder_norm);
    require_close(model.encode(wide_x).dense(), codes, 1e-5, true);
  } else if (any.architecture() == "jumprelu") {
    const auto model = sae::load_saelens<Sae<sae::JumpReLU, double>>(peers / name);
    require_close(model.encode(wide_x).dense(), codes, 1e-5, true);
    CHECK(any.parameters().at("threshold") == std::vector<Index>{1, 56});
  } else {
    const auto model = sae::load_saelens<Sae<sae::ReLU, double>>(peers / name / "sae_weights.safetensors");
    require_close(model.encode(wide_x).dense(), codes, 1e-5, true);
  }
}

TEST_CASE("SAELens: a written SAE has the bytes of the peer's weights and comes back", "[formats][saelens]") {
  const std::string name = GENERATE("saelens_standard", "saelens_standard_no_bdec_input", "saelens_standard_layer_norm",
                                    "saelens_standard_constant_norm_rescale", "saelens_topk_layer_norm", "saelens_topk",
                                    "saelens_topk_rescale", "saelens_jumprelu_from_training");
  CAPTURE(name);
  const TempFolder folder;
  const sae::AnySae loaded = sae::load(peers / name);
  sae::save_saelens(loaded, folder / "sae");
  CHECK(folder.names() == std::vector<std::string>{"sae"});
  const std::string weights = "sae_weights.safetensors";
  auto theirs = sae::read_json(peers / name / "cfg.json"), ours = sae::read_json(folder / "sae" / "cfg.json");
  if (name == "saelens_topk_rescale") {
    CHECK(ours.at("rescale_acts_by_decoder_norm") == false);
    ours["rescale_acts_by_decoder_norm"] = true;
    CHECK(loaded.W_dec().rowwise().norm().isOnes(1e-6f));
  } else {
    CHECK((sae::read_file(folder / "sae" / weights) == sae::read_file(peers / name / weights)));
  }
  CHECK(ours == theirs);

  // Saving is a function of the SAE alone, and loading its inverse.
  const sae::AnySae again = sae::load(folder / "sae");
  sae::save_saelens(again, folder / "again");
  for (const char* file : {"cfg.json", "sae_weights.safetensors"})
    CHECK((sae::read_file(folder / "sae" / file) == sae::read_file(folder / "again" / file)));

  CHECK_THROWS_WITH(sae::save_saelens(again, folder / "sae"), ContainsSubstring("exists"));
  sae::save_saelens(again, folder / "sae", {.overwrite = true});
  CHECK(folder.names() == std::vector<std::string>{"again", "sae"});
}

TEST_CASE("SAELens: a TopK that ranks by the decoder norm is saved folded, double as float64 or float32",
          "[formats][saelens]") {
  const TempFolder folder;
  Sae<sae::TopK, double> model(6, 20, {.k = 3, .rank_by_decoder_norm = true});
  sae::Random random(7);
  model.parameters().visit(
      [&](std::string_view, auto& tensor) {
        for (Index i = 0; i < tensor.size(); ++i) tensor[i] = random.normal();
      },
      model.parameters());
  std::fill_n(model.parameters().W_dec.row(11), 6, 0.0);  // never wins, whatever it reads
  model.parameters().b_enc[11] = 100;
  sae::Matrix<double> x(40, 6);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = random.normal();
  const auto want = model.reconstruct(x);
  const auto codes = model.encode(x);

  sae::save_saelens(model, folder / "wide", {.model_name = "toy", .hook_name = sae::hook_of_site({3, sae::SiteKind::mlp_out})});
  CHECK(model.activation().rank_by_decoder_norm);
  std::vector<std::string> warnings;
  const auto wide = sae::load_saelens<Sae<sae::TopK, double>>(folder / "wide", {.warnings = &warnings});
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("1 of 20 decoder rows are zero") && ContainsSubstring("latent 11"));
  CHECK((wide.reconstruct(x) - want).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 1e-12);
  const auto folded = wide.encode(x);
  REQUIRE(folded.size() == codes.size());
  for (Index e = 0; e < codes.size(); ++e) {
    CHECK(folded.latent(e) == codes.latent(e));
    CHECK(folded.value(e) == Approx(codes.value(e) * model.W_dec().row(codes.latent(e)).norm()).epsilon(1e-12).margin(1e-300));
  }
  const sae::AnySae any = sae::load(folder / "wide");
  CHECK(any.dtype == "float64");
  CHECK(any.config.at("dtype") == "float64");
  CHECK(any.site() == sae::Site{3, sae::SiteKind::mlp_out});
  CHECK((any.reconstruct(x.cast<float>()) - want.cast<float>()).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() < 1e-4f);

  sae::save_saelens(model, folder / "narrow", {}, {.dtype = sae::Dtype::float32});
  CHECK(sae::load(folder / "narrow").dtype == "float32");
  CHECK_THROWS_AS(sae::save_saelens(model, folder / "half", {}, {.dtype = sae::Dtype::int32}), sae::ValueError);
  CHECK(folder.names() == std::vector<std::string>{"narrow", "wide"});
}

TEMPLATE_TEST_CASE("SAELens: weights of 16 bits are written and read as they are", "[formats][saelens]", sae::bfloat16,
                   sae::float16) {
  using Narrow = sae::SparseAutoencoder<Dynamic, Dynamic, sae::JumpReLU, float, TestType>;
  const TempFolder folder;
  Narrow model(5, 30, {.threshold = 0.3});
  sae::Random random(4);
  for (auto* const tensor : {&model.parameters().b_enc, &model.parameters().b_dec})
    for (Index i = 0; i < tensor->size(); ++i) (*tensor)[i] = static_cast<float>(random.normal());
  for (Index i = 0; i < model.parameters().W_enc.size(); ++i)
    model.parameters().W_enc[i] = TestType(static_cast<float>(random.normal()));
  sae::save_saelens(model, folder / "own");
  const sae::SafetensorsFile file(folder / "own" / "sae_weights.safetensors");
  for (const auto& [name, tensor] : file.tensors()) CHECK(tensor.dtype == sae::dtype_of<TestType>());
  CHECK(sae::load(folder / "own").config.at("dtype") == sae::to_string(sae::dtype_of<TestType>()));
  const auto back = sae::load_saelens<Narrow>(folder / "own");
  CHECK(back.parameters().W_enc == model.parameters().W_enc);
  CHECK(back.parameters().W_dec == model.parameters().W_dec);
  for (Index i = 0; i < 30; ++i)
    CHECK(back.parameters().b_enc[i] == static_cast<float>(TestType(model.parameters().b_enc[i])));  // the file has one dtype
  // In float32 everything is exact, and a model of either kind reads either file.
  sae::save_saelens(model, folder / "wide", {}, {.dtype = sae::Dtype::float32});
  const auto exact = sae::load_saelens<Narrow>(folder / "wide");
  CHECK(exact.parameters().W_enc == model.parameters().W_enc);
  CHECK(exact.parameters().b_enc == model.parameters().b_enc);
  const auto full = sae::load_saelens<Sae<sae::JumpReLU>>(folder / "own");
  CHECK(full.parameters().W_enc == sae::with_weights<float>(model).parameters().W_enc);
  CHECK(full.parameters().b_dec == back.parameters().b_dec);
  // What the peer wrote in 16 bits stays as it is.
  const auto of_peer = sae::load_saelens<Narrow>(peers / "saelens_jumprelu_bf16");
  if (!std::is_same_v<TestType, sae::bfloat16>) return;
  const auto of_peer_wide = sae::load_saelens<Sae<sae::JumpReLU>>(peers / "saelens_jumprelu_bf16");
  CHECK(sae::with_weights<float>(of_peer).parameters().W_dec == of_peer_wide.parameters().W_dec);
  CHECK(sae::with_weights<float>(of_peer).parameters().W_enc == of_peer_wide.parameters().W_enc);
}

TEST_CASE("SAELens: weights that are not finite in the file's dtype are not saved", "[formats][saelens]") {
  const TempFolder folder;
  Sae<sae::ReLU, double> model(4, 6);
  model.parameters().b_enc[2] = 1e39;
  CHECK_THROWS_WITH(sae::save_saelens(model, folder / "sae", {}, {.dtype = sae::Dtype::float32}),
                    ContainsSubstring("b_enc holds numbers that are not finite in float32"));
  CHECK(folder.names().empty());
  sae::save_saelens(model, folder / "wide");
  model.parameters().b_enc[2] = 65520;
  CHECK_THROWS_WITH(sae::save_saelens(model, folder / "sae", {}, {.dtype = sae::Dtype::float16}),
                    ContainsSubstring("b_enc holds numbers that are not finite in float16"));
  model.parameters().W_dec[0] = std::nan("");
  CHECK_THROWS_AS(sae::save_saelens(model, folder / "sae"), sae::ValueError);
  CHECK(folder.names() == std::vector<std::string>{"wide"});
}

TEST_CASE("SAELens: metadata goes out and comes back, other fields as they stand", "[formats][saelens]") {
  const TempFolder folder;
  const Sae<sae::ReLU> model(3, 5);
  sae::SaelensMetadata metadata{
      .model_name = "m", .hook_name = "blocks.2.hook_attn_out", .context_size = 128, .prepend_bos = false, .dataset_path = "d"};
  metadata.other = {{"note", {1, 2, 3}}, {"unknown", nullptr}};
  sae::save_saelens(model, folder / "sae", metadata);
  const sae::AnySae any = sae::load(folder / "sae");
  CHECK(any.metadata.model_name == "m");
  CHECK(any.metadata.hook_name == "blocks.2.hook_attn_out");
  CHECK(any.metadata.context_size == 128);
  CHECK(any.metadata.prepend_bos == false);
  CHECK(any.metadata.dataset_path == "d");
  CHECK(any.metadata.other == metadata.other);
  metadata.other = {1, 2};
  CHECK_THROWS_AS(sae::save_saelens(model, folder / "other", metadata), sae::ValueError);
  CHECK(folder.names() == std::vector<std::string>{"sae"});
}

TEST_CASE("SAELens: a model of another type is refused by what differs", "[formats][saelens]") {
  CHECK_THROWS_WITH(sae::load_saelens<Sae<sae::ReLU>>(peers / "saelens_topk"),
                    ContainsSubstring("cfg.json: architecture = \"topk\" does not fit") && ContainsSubstring("\"standard\""));
  CHECK_THROWS_WITH((sae::load_saelens<sae::SparseAutoencoder<32, Dynamic, sae::TopK>>(peers / "saelens_topk")),
                    ContainsSubstring("d_in = 24 does not fit") && ContainsSubstring("32"));
  CHECK_THROWS_WITH((sae::load_saelens<sae::SparseAutoencoder<24, 57, sae::TopK>>(peers / "saelens_topk")),
                    ContainsSubstring("d_sae = 56 does not fit") && ContainsSubstring("57"));
  const auto model = sae::load_saelens<sae::SparseAutoencoder<24, 56, sae::TopK>>(peers / "saelens_topk");
  CHECK(model.activation().k == 6);
}

TEST_CASE("SAELens: settings that nothing here does are refused by name", "[formats][saelens]") {
  const CopiedSae sae("saelens_standard");
  auto config = sae.config();
  config["normalize_activations"] = "batch_norm";
  sae.set(config);
  CHECK_THAT(error_of(sae.path),
             ContainsSubstring("cfg.json: normalize_activations = \"batch_norm\" is not supported; \"none\""));
  config = CopiedSae("saelens_standard").config();
  config["architecture"] = "ica";
  sae.set(config);
  CHECK_THAT(error_of(sae.path), ContainsSubstring("architecture = \"ica\" is not supported; these are: standard, topk"));
}

TEST_CASE("SAELens: a wrong cfg.json is refused by file and field", "[formats][saelens]") {
  const CopiedSae sae("saelens_topk");
  struct Case {
    const char* field;
    nlohmann::json value;
    const char* says;
  };
  const std::vector<Case> cases{
      {"d_in", "24", "cfg.json: d_in = \"24\" is not an integer"},
      {"d_in", 24.0, "d_in = 24.0 is not"},
      {"d_in", 0, "d_in = 0 is not"},
      {"d_in", -24, "d_in = -24 is not"},
      {"d_in", 1099511627776, "d_in = 1099511627776 is not"},
      {"d_in", nullptr, "cfg.json: d_in is missing"},
      {"d_in", 23, "sae_weights.safetensors: tensor W_enc has shape [24, 56], it should be [23, 56]"},
      {"d_sae", 57, "tensor W_enc has shape [24, 56], it should be [24, 57]"},
      {"d_sae", 1073741824, "it should be [24, 1073741824]"},
      {"d_sae", {56}, "d_sae = [56] is not"},
      {"k", 57, "k = 57 is not an integer in [1, 56]"},
      {"k", 0, "k = 0 is not"},
      {"k", nullptr, "k is missing"},
      {"k", true, "k = true is not"},
      {"architecture", 3, "architecture = 3 is not a text"},
      {"architecture", nullptr, "architecture is missing"},
      {"architecture", "top\nk", "architecture = \"top?k\" is not supported"},
      {"apply_b_dec_to_input", "yes", "apply_b_dec_to_input = \"yes\" is not true or false"},
      {"rescale_acts_by_decoder_norm", 1, "rescale_acts_by_decoder_norm = 1 is not true or false"},
      {"normalize_activations", false, "normalize_activations = false is not a text"},
      {"reshape_activations", "hook_q", "reshape_activations = \"hook_q\" is not supported"},
      {"metadata", "none", "metadata = \"none\" is not an object"},
      {"metadata", {{"hook_name", 5}}, "hook_name = 5 is not a text"},
  };
  for (const Case& c : cases) {
    auto config = sae.config();
    CAPTURE(c.field, c.value);
    const auto good = config;
    if (c.value.is_null()) {
      config.erase(c.field);
    } else {
      config[c.field] = c.value;
    }
    sae.set(config);
    const std::string error = error_of(sae.path);
    CHECK_THAT(error, ContainsSubstring(c.says) && ContainsSubstring(sae.path.string()));
    CHECK(error.find('\n') == std::string::npos);
    sae.set(good);
  }
  REQUIRE(error_of(sae.path).empty());

  auto config = sae.config();  // what is not needed may be absent or new
  for (const char* field :
       {"metadata", "dtype", "device", "normalize_activations", "reshape_activations", "apply_b_dec_to_input"})
    config.erase(field);
  config["new_field"] = {{"a", 1}};
  sae.set(config);
  CHECK(error_of(sae.path).empty());
  CHECK(sae::load(sae.path).metadata.hook_name.empty());

  sae::atomic_write_text(sae.path / "cfg.json", "[1, 2]", {.overwrite = true});
  CHECK_THAT(error_of(sae.path), ContainsSubstring("cfg.json: a JSON object is needed"));
  sae::atomic_write_text(sae.path / "cfg.json", "{\"d_in\": ", {.overwrite = true});
  CHECK_THAT(error_of(sae.path), ContainsSubstring("cfg.json: is not valid JSON"));
  fs::remove(sae.path / "cfg.json");
  CHECK_THAT(error_of(sae.path), ContainsSubstring("sae_weights.safetensors") && ContainsSubstring("without a cfg.json"));
  CHECK_THAT(error_of(sae.path / "nothing"), ContainsSubstring("there is no such file or folder"));
  CHECK_THAT(error_of(peers / "saelens_topk" / "x.npy"), ContainsSubstring("is no SAE"));
}

TEST_CASE("SAELens: wrong weights are refused by file and tensor", "[formats][saelens]") {
  const CopiedSae sae("saelens_topk");
  const auto weights = sae.path / "sae_weights.safetensors";
  const std::string good = sae::read_file(weights);
  const auto says = [&](const auto& change) {
    sae::atomic_write_text(weights, good, {.overwrite = true});
    sae.change_weights(change);
    return error_of(sae.path);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  CHECK(says([](auto&) {}).empty());
  CHECK_THAT(says([&](auto& t) { t["W_enc"].row(3)[7] = nan; }),
             ContainsSubstring("sae_weights.safetensors: tensor W_enc: the number at [3, 7] is NaN"));
  CHECK_THAT(says([&](auto& t) { t["b_enc"][9] = -infinity; }),
             ContainsSubstring("tensor b_enc: the number at [9] is minus infinite"));
  CHECK_THAT(says([&](auto& t) { t["W_dec"].row(55)[23] = infinity; }), ContainsSubstring("[55, 23] is infinite"));
  CHECK_THAT(says([](auto& t) { t.erase("b_dec"); }), ContainsSubstring("has no tensor b_dec; it holds W_dec, W_enc, b_enc"));
  CHECK_THAT(says([](auto& t) { t["W_dec"].resize(24, 56); }),
             ContainsSubstring("W_dec has shape [24, 56], it should be [56, 24]"));
  CHECK_THAT(says([](auto& t) { t["b_enc"].resize(1, 55); }), ContainsSubstring("b_enc has shape [55], it should be [56]"));

  // Without the check they are read; with it, warnings tell what is there besides and what can do nothing.
  sae.change_weights([&](auto& t) {
    t["b_enc"].resize(1, 56);
    t["b_enc"][9] = nan;
  });
  CHECK(std::isnan(sae::load_saelens<Sae<sae::TopK>>(sae.path, {.check_finite = false}).parameters().b_enc[9]));
  sae::atomic_write_text(weights, good, {.overwrite = true});
  sae.change_weights([](auto& t) {
    t["scaling_factor"].resize(1, 3);
    for (const Index dead : {4, 50}) std::fill_n(t["W_dec"].row(dead), 24, 0.0f);
  });
  const auto loaded = sae::load(sae.path);
  REQUIRE(loaded.warnings.size() == 2);
  CHECK(loaded.warnings[0] == "tensor scaling_factor is not used");
  CHECK_THAT(loaded.warnings[1],
             ContainsSubstring("2 of 56 decoder rows are zero") && ContainsSubstring("the first is latent 4"));

  // float64 numbers that are no floats.
  sae::atomic_write_text(weights, good, {.overwrite = true});
  {
    sae::SafetensorsWriter out;
    sae::Tensor<double> W(24, 56), V(56, 24), b(1, 56), c(1, 24);
    W[1] = 1e300;
    out.add("W_enc", W);
    out.add("W_dec", V);
    out.add("b_enc", {56}, b);
    out.add("b_dec", {24}, c);
    out.save(weights, {.overwrite = true});
  }
  CHECK_THAT(error_of(sae.path), ContainsSubstring("W_enc: the number at [0, 1] is infinite"));
  {
    sae::SafetensorsWriter out;
    out.add("W_enc", {24, 56}, std::span<const std::int32_t>(std::vector<std::int32_t>(24 * 56)));
    const auto kept = std::vector<std::int32_t>(24 * 56);
    sae::SafetensorsWriter integers;
    integers.add("W_enc", {24, 56}, kept);
    integers.save(weights, {.overwrite = true});
  }
  CHECK_THAT(error_of(sae.path), ContainsSubstring("tensor W_enc holds int32, which is not read as float32"));

  // Cut anywhere, it is refused.
  for (std::size_t length = 0; length < good.size(); length += 101) {
    sae::atomic_write_text(weights, good.substr(0, length), {.overwrite = true});
    CAPTURE(length);
    CHECK_THAT(error_of(sae.path), ContainsSubstring("sae_weights.safetensors: "));
  }
  fs::remove(weights);
  CHECK_THAT(error_of(sae.path), ContainsSubstring("sae_weights.safetensors"));
}

TEST_CASE("SAELens: any failing system call leaves the old SAE or none, and nothing beside it", "[formats][saelens]") {
  const Sae<sae::TopK> model(8, 16, {.k = 2}), other(8, 16, {.k = 3});
  for (const bool replace : {false, true})
    for (int nth = 1;; ++nth) {
      const TempFolder folder;
      if (replace) sae::save_saelens(model, folder / "sae");
      bool happened = false, threw = false;
      {
        FailingFiles disk({.call = FailingFiles::Call::any_change, .nth = nth, .error = ENOSPC});
        try {
          sae::save_saelens(other, folder / "sae", {}, {.overwrite = replace});
        } catch (const sae::FileError&) {
          threw = true;
        }
        happened = disk.happened();
      }
      CAPTURE(replace, nth);
      CHECK(threw == happened);
      if (!happened) {
        CHECK(sae::load(folder / "sae").activation() == "topk, k = 3");
        CHECK(nth > 8);
        break;
      }
      CHECK(folder.names() == (replace ? std::vector<std::string>{"sae"} : std::vector<std::string>{}));
      if (replace) CHECK(sae::load(folder / "sae").activation() == "topk, k = 2");
    }
}

TEST_CASE("hook names: TransformerLens' and ours name the same sites", "[formats][saelens]") {
  using sae::Site;
  using sae::SiteKind;
  CHECK(sae::site_of_hook("blocks.15.hook_resid_post") == Site{15, SiteKind::residual});
  CHECK(sae::site_of_hook("blocks.15.hook_resid_pre") == Site{14, SiteKind::residual});
  CHECK(sae::site_of_hook("blocks.0.hook_mlp_out") == Site{0, SiteKind::mlp_out});
  CHECK(sae::site_of_hook("blocks.7.hook_attn_out") == Site{7, SiteKind::attn_out});
  CHECK(sae::site_of_hook("residual-3") == Site{3, SiteKind::residual});
  CHECK(sae::site_of_hook("mlp_out-0") == Site{0, SiteKind::mlp_out});
  for (const char* name :
       {"", "blocks.", "blocks.x.hook_mlp_out", "blocks.-1.hook_mlp_out", "blocks.1hook_mlp_out", "blocks.1.hook_q",
        "blocks.0.hook_resid_pre", "blocks.99999999999.hook_mlp_out", "blocks.1.hook_mlp_out.x", "residual"}) {
    CAPTURE(name);
    CHECK(!sae::site_of_hook(name));
  }
  for (const SiteKind kind : {SiteKind::residual, SiteKind::mlp_out, SiteKind::attn_out})
    CHECK(sae::site_of_hook(sae::hook_of_site({12, kind})) == Site{12, kind});
}

TEST_CASE("an AnySae that takes other weights forgets what it kept of its own", "[formats][saelens]") {
  const auto make = [](std::uint64_t seed) {
    return sae::AnySae(sae::AnyModel(128, 3000, sae::AnyActivation(sae::TopK{.k = 8}), {.initialization = {.seed = seed}}));
  };
  sae::Random random(3);
  sae::Tensor<float> x(300, 128);
  for (Index i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random.normal());
  const sae::Batch<float> rows(x.data(), 300, 128);
  const auto same = [&](const sae::AnySae& sae) { return sae.encode(rows).dense() == sae.model().encode(rows).dense(); };
  sae::AnySae first = make(1), second = make(2);
  CHECK(same(first));
  CHECK(same(second));
  const sae::AnySae copy = first;
  CHECK(same(copy));
  first = second;  // into the same memory
  CHECK(same(first));
  second = make(3);
  CHECK(same(second));
  CHECK(first.encode(rows).dense() != second.encode(rows).dense());
}

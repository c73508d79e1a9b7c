// Transcoders in SAELens' files: what the peer wrote and computed is what we read and compute, and what we write is what it wrote.
#include <sae/files/npy.hpp>
#include <sae/formats/load.hpp>

#include <string>
#include <utility>
#include <vector>

#include "catch_compat.hpp"
#include "parameter_gradient.hpp"
#include "temp_folder.hpp"

namespace fs = std::filesystem;

namespace {

using sae::Dynamic;
using sae::Index;
using namespace sae_test;

template <class Activation, class Scalar = float>
using Model = sae::Transcoder<Dynamic, Dynamic, Dynamic, Activation, Scalar>;

const fs::path peers = fs::path(SAE_TEST_DATA) / "peers" / "inference";

sae::Matrix<float> rows_of(const fs::path& file) {
  const sae::NpyArray array(file);
  const auto values = array.values<float>();
  return sae::ConstMatrixMap<float>(values.data(), array.shape()[0], array.shape()[1]);
}
template <class M>
void check_peer(const std::string& name, bool skip) {
  CAPTURE(name);
  const fs::path folder = peers / name;
  const auto model = sae::load_saelens<M>(folder);
  CHECK(model.has_skip() == skip);
  const auto x = rows_of(folder / "x.npy"), codes = rows_of(folder / "codes.npy"), want = rows_of(folder / "recon.npy");
  const sae::Matrix<float> got = model.encode(x).dense();
  CHECK(relative_error(got, codes) <= 1e-5);
  CHECK((got.array() != 0).matrix() == (codes.array() != 0).matrix());
  CHECK(relative_error(model.predict(x), want) <= 1e-5);

  // Written again it has the peer's fields and, to the bit, its tensors.
  TempFolder temp;
  const auto config = sae::read_saelens_config(folder);
  sae::save_saelens(model, temp / "saved", config.metadata);
  nlohmann::json written = sae::read_json(temp / "saved" / "cfg.json");
  CHECK(written == config.json);
  const sae::SafetensorsFile ours(temp / "saved" / "sae_weights.safetensors"), theirs(folder / "sae_weights.safetensors");
  REQUIRE(ours.tensors().size() == theirs.tensors().size());
  for (const auto& [tensor, info] : theirs.tensors()) {
    CAPTURE(tensor);
    CHECK(ours.info(tensor).shape == info.shape);
    auto expected = theirs.read<float>(tensor);
    if (tensor == "threshold") expected.map() = expected.map().cwiseMax(0.0F);  // below 0 does what 0 does
    CHECK(ours.read<float>(tensor) == expected);
  }
}

}  // namespace

TEST_CASE("SAELens' transcoders: codes, outputs, and files written back", "[formats][transcoder]") {
  check_peer<Model<sae::ReLU>>("saelens_transcoder", false);
  check_peer<Model<sae::ReLU>>("saelens_skip_transcoder", true);
  check_peer<Model<sae::JumpReLU>>("saelens_jumprelu_transcoder", false);
  check_peer<Model<sae::JumpReLU>>("saelens_jumprelu_skip_transcoder", true);
  for (const auto& [name, skip] : {std::pair{"saelens_transcoder", false},
                                   {"saelens_skip_transcoder", true},
                                   {"saelens_jumprelu_transcoder", false},
                                   {"saelens_jumprelu_skip_transcoder", true}})
    check_peer<sae::AnyTranscoder>(name, skip);
}

TEST_CASE("other activations of a transcoder have names of ours", "[formats][transcoder]") {
  TempFolder temp;
  const Dense x = random_rows(6, 5, 1);
  Model<sae::TopK, double> model(5, 7, 30, {.k = 4, .rank_by_decoder_norm = true}, {.skip = true, .decoder_norm = 1});
  randomise_everything(model, 2);
  sae::save_saelens(model, temp / "topk");
  CHECK(sae::read_json(temp / "topk" / "cfg.json").at("architecture") == "topk_skip_transcoder");
  const auto back = sae::load_saelens<Model<sae::TopK, double>>(temp / "topk");
  CHECK(back.activation().k == 4);
  CHECK(relative_error(back.predict(x), model.predict(x)) <= 1e-12);
  CHECK(mask_of(back.encode(x)) == mask_of(model.encode(x)));

  sae::AnyTranscoder batch(5, 7, 30, sae::BatchTopK{.k = 4});
  batch.parameters().activation.get<sae::BatchTopK>()->threshold_state[0] = 0.5;
  batch.parameters().activation.get<sae::BatchTopK>()->threshold_state[1] = 1;
  sae::save_saelens(batch, temp / "batch");
  CHECK(sae::read_json(temp / "batch" / "cfg.json").at("architecture") == "jumprelu_transcoder");
}

TEST_CASE("a transcoder's files that do not fit are refused in one sentence", "[formats][transcoder]") {
  const auto config = [](const std::string& name) { return (peers / name / "cfg.json").string(); };
  CHECK_THROWS_WITH(sae::load<sae::AnyModel>(peers / "saelens_skip_transcoder"),
                    config("saelens_skip_transcoder") +
                        ": architecture = \"skip_transcoder\" is a transcoder, the model it is "
                        "loaded into is an autoencoder");
  CHECK_THROWS_WITH(sae::load_saelens<sae::AnyTranscoder>(peers / "saelens_standard"),
                    config("saelens_standard") +
                        ": architecture = \"standard\" is an autoencoder, the model it is loaded into "
                        "is a transcoder");
  CHECK_THROWS_WITH(sae::load_saelens<Model<sae::ReLU>>(peers / "saelens_jumprelu_transcoder"),
                    config("saelens_jumprelu_transcoder") +
                        ": architecture = \"jumprelu_transcoder\" does not fit the model it is "
                        "loaded into, which is \"standard\"");
  CHECK_THROWS_WITH((sae::load_saelens<sae::Transcoder<24, 19, 56, sae::ReLU>>(peers / "saelens_transcoder")),
                    config("saelens_transcoder") + ": d_out = 18 does not fit the model it is loaded into, whose D_out is 19");
  TempFolder temp;
  fs::create_directory(temp / "sae");
  for (const char* file : {"cfg.json", "sae_weights.safetensors"})
    fs::copy_file(peers / "saelens_transcoder" / file, temp / "sae" / file);
  auto json = sae::read_json(temp / "sae" / "cfg.json");
  const auto with = [&](const std::string& field, const nlohmann::json& value) {
    auto changed = json;
    changed[field] = value;
    fs::remove(temp / "sae" / "cfg.json");
    sae::save_json(temp / "sae" / "cfg.json", changed, {.overwrite = true});
  };
  const std::string file = (temp / "sae" / "cfg.json").string();
  with("apply_b_dec_to_input", true);
  CHECK_THROWS_WITH(
      sae::load_saelens<Model<sae::ReLU>>(temp / "sae"),
      file + ": apply_b_dec_to_input = true does not fit a transcoder, whose b_dec is in the units of its output");
  with("d_out", 17);
  CHECK_THROWS_AS(sae::load_saelens<Model<sae::ReLU>>(temp / "sae"), sae::FileError);
  with("architecture", "skip_transcoder");  // W_skip is missing
  CHECK_THROWS_AS(sae::load_saelens<Model<sae::ReLU>>(temp / "sae"), sae::FileError);
  with("architecture", "mytranscoder");
  CHECK_THROWS_AS(sae::load_saelens<Model<sae::ReLU>>(temp / "sae"), sae::FileError);
  json.erase("d_out");
  with("device", "cpu");
  CHECK_THROWS_AS(sae::load_saelens<Model<sae::ReLU>>(temp / "sae"), sae::FileError);
}

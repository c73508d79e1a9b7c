// Weights that stay in their file: the codes and reconstructions of those in memory, to the last bit.
#include <sae/core/random.hpp>
#include <sae/files/safetensors.hpp>
#include <sae/formats/load.hpp>
#include <sae/formats/save_as.hpp>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "catch_compat.hpp"
#include "peer_codes.hpp"
#include "routes.hpp"
#include "temp_folder.hpp"

using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

using sae::Dtype, sae::Index, sae::WeightsIn;
using sae_test::peers, sae_test::rows_of;

sae::Matrix<float> noise(Index rows, Index cols, std::uint64_t seed) {
  sae::Random random(seed);
  sae::Matrix<float> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(random.normal());
  return out;
}
/// The numbers of a matrix as a file has them, `shift` bytes behind a line of the cache.
template <class T>
std::vector<std::byte> bytes_of(const sae::Matrix<float>& w, bool transposed, std::size_t shift) {
  std::vector<std::byte> out(shift + static_cast<std::size_t>(w.size()) * sizeof(T));
  for (Index i = 0; i < w.rows(); ++i)
    for (Index j = 0; j < w.cols(); ++j) {
      const T number = sae::detail::stored_as<T>(w(i, j));
      const auto at = static_cast<std::size_t>(transposed ? j * w.rows() + i : i * w.cols() + j);
      std::memcpy(out.data() + shift + at * sizeof(T), &number, sizeof(T));
    }
  return out;
}
void write_sae(const fs::path& folder, const sae::AnyModel& model, Dtype dtype, sae::SaeLayout layout) {
  sae::save_as(sae::AnySae(model), layout, folder, {.dtype = dtype});
}
sae::AnyModel random_model(Index width, Index latents, const sae::AnyActivation& activation) {
  sae::AnyModel model(width, latents, activation);
  auto& p = model.parameters();
  p.W_enc.map() = noise(latents, width, 1);
  p.W_dec.map() = noise(latents, width, 2);
  p.b_enc.map() = noise(1, latents, 3);
  p.b_dec.map() = noise(1, width, 4);
  return model;
}
/// Writes another number in the place of one that the file has once.
void replace_number(const fs::path& file, float number, float by) {
  std::ifstream in(file, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  const auto raw = [](float x) { return std::string(reinterpret_cast<const char*>(&x), sizeof x); };
  const std::size_t at = bytes.find(raw(number));
  REQUIRE(at != std::string::npos);
  REQUIRE(bytes.find(raw(number), at + 1) == std::string::npos);
  std::ofstream(file, std::ios::binary) << bytes.replace(at, sizeof by, raw(by));
}
void require_same(const sae::AnySae& a, const sae::AnySae& b, const sae::Batch<float>& x) {
  const sae::Codes<float> of_a = a.encode(x), of_b = b.encode(x);
  REQUIRE(of_a.size() > 0);
  REQUIRE(of_a.dense() == of_b.dense());
  REQUIRE(a.decode(of_a, x) == b.decode(of_b, x));
}

}  // namespace

TEST_CASE("every fixture computes the same where its weights stay in the file, or says why they cannot", "[formats][mapped]") {
  Index mapped = 0, refused = 0;
  for (const auto& entry : fs::directory_iterator(peers)) {
    const fs::path folder = entry.path();
    CAPTURE(folder.filename().string());
    const std::string name = folder.filename().string();
    if (!fs::exists(folder / "x.npy") || fs::exists(folder / "before") ||
        (name == "gemma_scope_1_deflated" && sae::detail::inflater == nullptr))
      continue;
    const sae::AnySae whole = sae::load(folder);
    CHECK_FALSE(whole.is_mapped());  // small ones are copied
    try {
      const sae::AnySae sae = sae::load(folder, {.weights = WeightsIn::file});
      REQUIRE(sae.is_mapped());
      ++mapped;
      const auto x = rows_of(folder / "x.npy");
      require_same(sae, whole, x);
      CHECK(sae.architecture() == whole.architecture());
      CHECK(sae.activation() == whole.activation());
      CHECK(sae.parameters() == whole.parameters());
      CHECK(sae.direction(3) == whole.direction(3));
      CHECK(sae.check_weights().empty());
    } catch (const sae::FileError& error) {
      CHECK_THAT(error.what(), ContainsSubstring("weights do not stay in the file: "));
      ++refused;
    }
  }
  CHECK(mapped >= 35);
  CHECK(refused >= 4);
}

TEST_CASE("rows of a mapped array are those of the matrix, of any kind, order, place and scale", "[formats][mapped]") {
  const auto w = noise(101, 37, 5);
  const auto check = [&]<class T>(T) {
    for (const bool transposed : {false, true})
      for (const std::size_t shift : {0U, 1U, 2U})
        for (const double scale : {1.0, 0.3}) {
          CAPTURE(sae::to_string(sae::dtype_of<T>()), transposed, shift, scale);
          const auto bytes = bytes_of<T>(w, transposed, shift);
          const sae::ArrayView array{sae::dtype_of<T>(),
                                     transposed ? std::vector<Index>{37, 101} : std::vector<Index>{101, 37},
                                     {},
                                     bytes.data() + shift};
          const sae::StoredMatrix stored{"w", array, transposed, scale};
          const auto want = sae::detail::read_stored<float>(stored, {101, 37}, "f", true);
          const auto got = sae::detail::read_stored<sae::Mapped>(stored, {101, 37}, "f", true);
          CHECK(got.by_columns() == transposed);
          for (const Index first : {0, 1, 100})
            for (const Index count : {1, 2, 48, 49, 101}) {
              if (first + count > 101) continue;
              std::vector<float> rows(static_cast<std::size_t>(count * 37 + 1), -9.0F);
              got.read(first, count, rows.data());
              REQUIRE(std::equal(rows.begin(), rows.end() - 1, want.row(first)));
              REQUIRE(rows.back() == -9.0F);
            }
        }
  };
  check(float());
  check(double());
  check(sae::bfloat16());
  check(sae::float16());
  const sae::ArrayView integers{Dtype::int32, {2, 2}, {}, nullptr};
  CHECK_THROWS_WITH(sae::detail::read_stored<sae::Mapped>({"w", integers}, {2, 2}, "f", true),
                    "f: tensor w holds int32, which is not read as float32");
  CHECK_THROWS_WITH(sae::detail::read_stored<sae::Mapped>({"w", integers}, {2, 3}, "f", true),
                    "f: tensor w has shape [2, 2], it should be [2, 3]");
}

TEST_CASE("mapped weights go by a screen, by blocks and by single rows to the same codes", "[formats][mapped]") {
  TempFolder temp;
  const auto model = random_model(96, 2048, sae::TopK{.k = 20});
  write_sae(temp / "columns", model, Dtype::float32, sae::SaeLayout::saelens);              // W_enc [D x F]
  write_sae(temp / "rows", model, Dtype::bfloat16, sae::SaeLayout::sparsify);               // W_enc [F x D]
  write_sae(temp / "decoder", model, Dtype::float16, sae::SaeLayout::dictionary_learning);  // W_dec [D x F]
  for (const char* const name : {"columns", "rows", "decoder"}) {
    CAPTURE(name);
    const sae::AnySae whole = sae::load(temp / name), mapped = sae::load(temp / name, {.weights = WeightsIn::file});
    const auto& p = mapped.get<sae::MappedModel>()->parameters();
    CHECK(p.W_enc.by_columns() == (std::string(name) == "columns"));
    sae_test::on_every_route([&] {
      for (const Index rows : {1, 5, 300}) {
        CAPTURE(rows);
        require_same(whole, mapped, noise(rows, 96, 6));
      }
    });
  }
}

TEST_CASE("a number that is not finite is found where its row is used first, or by a check", "[formats][mapped]") {
  for (const bool in_encoder : {true, false}) {
    TempFolder temp;
    auto model = random_model(8, 60, sae::ReLU{});
    constexpr float marked = 1234.5F, nan = std::numeric_limits<float>::quiet_NaN();
    (in_encoder ? model.parameters().W_enc : model.parameters().W_dec).row(59)[2] = marked;
    write_sae(temp / "sae", model, Dtype::float32, sae::SaeLayout::saelens);
    replace_number(temp / "sae" / "sae_weights.safetensors", marked, nan);
    const std::string wrong = in_encoder ? "tensor W_enc: the number at [2, 59] is NaN; weights must be finite"
                                         : "tensor W_dec: the number at [59, 2] is NaN; weights must be finite";
    CHECK_THROWS_WITH(sae::load(temp / "sae"), ContainsSubstring(wrong));
    const sae::AnySae sae = sae::load(temp / "sae", {.weights = WeightsIn::file});
    const auto x = noise(40, 8, 7);
    if (in_encoder) {
      CHECK_THROWS_WITH(sae.encode(x), ContainsSubstring(wrong));
    } else {
      CHECK_THROWS_WITH(sae.reconstruct(x), ContainsSubstring(wrong));
      CHECK_NOTHROW(sae.direction(58));
      CHECK_THROWS_WITH(sae.direction(59), ContainsSubstring(wrong));
    }
    CHECK_THROWS_WITH(sae.check_weights(), ContainsSubstring(wrong));
    const sae::AnySae unchecked = sae::load(temp / "sae", {.check_finite = false, .weights = WeightsIn::file});
    CHECK_NOTHROW(unchecked.check_weights());
  }
}

TEST_CASE("decoder rows of zeros in a file are told by a check, as loading tells of those in memory", "[formats][mapped]") {
  TempFolder temp;
  auto model = random_model(8, 60, sae::ReLU{});
  for (const Index zero : {31, 17}) std::fill_n(model.parameters().W_dec.row(zero), 8, 0.0F);
  write_sae(temp / "sae", model, Dtype::float32, sae::SaeLayout::saelens);
  const std::vector<std::string> expected = {
      "W_dec: 2 of 60 decoder rows are zero, their latents write nothing; the first is latent 17"};
  CHECK(sae::load(temp / "sae").warnings == expected);
  const sae::AnySae mapped = sae::load(temp / "sae", {.weights = WeightsIn::file});
  CHECK(mapped.warnings.empty());
  CHECK(mapped.check_weights() == expected);
  CHECK(sae::load(temp / "sae").check_weights().empty());
}

TEST_CASE("what was refused once is refused again, and no screen is made of half of it", "[formats][mapped]") {
  for (const Index wrong : {0, 700}) {
    TempFolder temp;
    constexpr float marked = 1234.5F;
    auto model = random_model(64, 2048, sae::TopK{.k = 8});
    model.parameters().W_enc.row(wrong)[2] = marked;
    write_sae(temp / "sae", model, Dtype::float32, sae::SaeLayout::sparsify);  // W_enc [F x D]
    replace_number(temp / "sae" / "sae.safetensors", marked, std::numeric_limits<float>::quiet_NaN());
    sae_test::on_every_route([&] {
      const sae::AnySae sae = sae::load(temp / "sae", {.weights = WeightsIn::file});
      const auto x = noise(300, 64, 7);
      for (int again = 0; again < 3; ++again) CHECK_THROWS_WITH(sae.encode(x), ContainsSubstring("; weights must be finite"));
    });
  }
}

TEST_CASE("what needs weights in memory says so, and has them by with_weights", "[formats][mapped]") {
  TempFolder temp;
  const auto model = random_model(8, 60, sae::ReLU{});
  write_sae(temp / "sae", model, Dtype::float32, sae::SaeLayout::saelens);
  const sae::AnySae sae = sae::load(temp / "sae", {.weights = WeightsIn::file});
  const std::string wants = "load it with LoadOptions{.weights = WeightsIn::memory}";
  CHECK_THROWS_WITH(sae.W_enc(), ContainsSubstring(wants));
  CHECK_THROWS_WITH(sae.W_dec(), ContainsSubstring(wants));
  CHECK_THROWS_WITH(sae.model(), ContainsSubstring(wants));
  CHECK_THROWS_WITH(sae::save_saelens(sae, temp / "again"), ContainsSubstring(wants));
  CHECK_THROWS_WITH(sae::save_as(sae, sae::SaeLayout::sparsify, temp / "again", {}), ContainsSubstring(wants));
  CHECK_FALSE(fs::exists(temp / "again"));
  const auto copied = sae::with_weights<float>(*sae.get<sae::MappedModel>());
  CHECK(copied.parameters().W_enc == model.parameters().W_enc);
  CHECK(copied.parameters().W_dec == model.parameters().W_dec);
}

TEST_CASE("large weights stay in their file by themselves", "[formats][mapped]") {
  sae::PublishedSae from;
  from.file = "f";
  from.d_in = 2304;
  from.activation = sae::JumpReLU{};
  const auto stays = [&](Index latents, WeightsIn where = WeightsIn::automatic) {
    from.latents = latents;
    return sae::detail::stays_in_file(from, where);
  };
  CHECK(stays(65536));
  CHECK_FALSE(stays(65536, WeightsIn::memory));
  CHECK_FALSE(stays(14563));
  CHECK(stays(14564));  // of 4608 numbers: 2^26
  CHECK(stays(4, WeightsIn::file));
  from.fold_decoder_norms = true;
  CHECK_FALSE(stays(65536));
  CHECK_THROWS_WITH(stays(4, WeightsIn::file), ContainsSubstring("folded into the weights"));
  from.fold_decoder_norms = false;
  from.glu = true;
  CHECK_FALSE(stays(65536));
  CHECK_THROWS_WITH(stays(4, WeightsIn::file), ContainsSubstring("GLU"));
  from.glu = false;
  from.activation = sae::MatchingPursuit{};
  CHECK_FALSE(stays(65536));
  CHECK_THROWS_WITH(stays(4, WeightsIn::file), ContainsSubstring("pursuit"));
}

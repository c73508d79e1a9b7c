#pragma once
#include <sae/files/json.hpp>
#include <sae/files/npy.hpp>
#include <sae/files/output_folder.hpp>
#include <sae/host/activation_source.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// What `collect.json` says about a collected folder: where its rows come from and what was left out.
struct CollectedInfo {
  std::string model_file, model_name;  ///< path of the model, and what it calls itself
  Index model_bytes = 0;
  std::string text_file, text_sha256;
  Index text_bytes = 0;
  std::vector<Site> sites;
  std::vector<double> norm_limits;  ///< largest norm kept, of each site; infinity where none was left out
  Index width = 0;                  ///< D
  Index rows = 0;                   ///< N, the same at every site
  Index context = 0;                ///< positions of a window, BOS included
  bool has_bos = false;             ///< position 0 of every window is BOS
  Index skip_tokens = 0, text_tokens = 0, windows = 0;
  CollectOptions options;
  CollectCounts counts;
  Dtype dtype = Dtype::float32;
};

namespace detail {

inline constexpr std::string_view collect_file = "collect.json";
inline constexpr std::string_view collect_format = "sae-collect-1";

inline nlohmann::ordered_json to_json(const CollectedInfo& info) {
  using Json = nlohmann::ordered_json;
  Json sites = Json::array();
  for (std::size_t s = 0; s < info.sites.size(); ++s) {
    const double limit = s < info.norm_limits.size() ? info.norm_limits[s] : std::numeric_limits<double>::infinity();
    sites.push_back({{"folder", to_string(info.sites[s])},
                     {"layer", info.sites[s].layer},
                     {"site", to_string(info.sites[s].kind)},
                     {"largest_norm_kept", std::isfinite(limit) ? Json(limit) : Json(nullptr)}});
  }
  return {{"format", collect_format},
          {"model", {{"file", info.model_file}, {"name", info.model_name}, {"bytes", info.model_bytes}}},
          {"text", {{"file", info.text_file}, {"bytes", info.text_bytes}, {"sha256", info.text_sha256}}},
          {"sites", sites},
          {"width", info.width},
          {"rows", info.rows},
          {"dtype", to_string(info.dtype)},
          {"context", info.context},
          {"has_bos", info.has_bos},
          {"skip_tokens", info.skip_tokens},
          {"text_tokens", info.text_tokens},
          {"windows", info.windows},
          {"keep_bos", info.options.keep_bos},
          {"max_norm", info.options.max_norm},
          {"dropped", {{"bos", info.counts.bos}, {"norm", info.counts.norm}, {"not_finite", info.counts.not_finite}}}};
}

/// Names of files need not be UTF-8; what is not becomes U+FFFD.
inline void write_collect_json(const std::filesystem::path& folder, const CollectedInfo& info) {
  const std::string text = to_json(info).dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  atomic_write_text(folder / collect_file, text + "\n", {.overwrite = true});
}

inline CollectedInfo read_collect_json(const std::filesystem::path& file) {
  const nlohmann::json all = read_json(file, std::size_t{1} << 24);
  constexpr Index int32_max = (std::numeric_limits<std::int32_t>::max)();
  if (const std::string format = json_string(all, "format", file); format != collect_format)
    throw_file(file.string(), ": format = ", printable(format), " is not ", collect_format);
  CollectedInfo info;
  const nlohmann::json &model = json_require(all, "model", file), &text = json_require(all, "text", file),
                       &dropped = json_require(all, "dropped", file), &sites = json_require(all, "sites", file);
  info.model_file = json_string(model, "file", file);
  info.model_name = json_string(model, "name", file);
  info.model_bytes = json_integer(model, "bytes", file, 0);
  info.text_file = json_string(text, "file", file);
  info.text_sha256 = json_string(text, "sha256", file);
  info.text_bytes = json_integer(text, "bytes", file, 0);
  if (!sites.is_array() || sites.empty()) throw_file(file.string(), ": sites is not a list of at least one site");
  for (const nlohmann::json& site : sites) {
    const std::string kind = json_string(site, "site", file);
    const auto known = find_site_kind(kind);
    if (!known) throw_file(file.string(), ": site = ", printable(kind), " is none of residual, mlp_out, attn_out");
    info.sites.push_back({json_integer(site, "layer", file, 0, int32_max), *known});
    info.norm_limits.push_back(json_number_or(site, "largest_norm_kept", std::numeric_limits<double>::infinity(), file, 0));
    if (json_string(site, "folder", file) != to_string(info.sites.back()))
      throw_file(file.string(), ": the folder of the site ", to_string(info.sites.back()), " has another name");
  }
  info.width = json_integer(all, "width", file, 1);
  info.rows = json_integer(all, "rows", file, 1);
  info.context = json_integer(all, "context", file, 2, int32_max);
  info.has_bos = json_bool(all, "has_bos", file);
  info.skip_tokens = json_integer(all, "skip_tokens", file, 0);
  info.text_tokens = json_integer(all, "text_tokens", file, 0);
  info.windows = json_integer(all, "windows", file, 1, int32_max);
  info.options = {json_bool(all, "keep_bos", file), json_number(all, "max_norm", file, 0)};
  info.counts = {info.rows, json_integer(dropped, "bos", file, 0), json_integer(dropped, "norm", file, 0),
                 json_integer(dropped, "not_finite", file, 0)};
  const std::string dtype = json_string(all, "dtype", file);
  const auto known = std::find_if(all_dtypes.begin(), all_dtypes.end(), [&](Dtype d) { return to_string(d) == dtype; });
  if (known == all_dtypes.end() || !is_floating(*known))
    throw_file(file.string(), ": dtype = ", printable(dtype), " is not a kind of floating-point number");
  info.dtype = *known;
  return info;
}

}  // namespace detail

struct CollectedWriterOptions {
  bool overwrite = false;                ///< replace an earlier collected folder (never another one)
  Index shard_bytes = Index{256} << 20;  ///< bytes of numbers in one rows-*.npy at most
};

/// Writes what `collect` hands out:
///
///   DIR/residual-15/rows-00000.npy, rows-00001.npy, ...   rows [N x D] of a site, cut into files of bounded size
///   DIR/tokens.npy                                        int32 [N x 3]: token, window, position of each row
///   DIR/collect.json                                      CollectedInfo
///
/// DIR appears at `finish`, whole; until then everything is in DIR.partial, which goes when the writer does.
/// Memory: 1.2 MB per open file. Errors: FileError (output_folder.hpp, npy.hpp); a number too large for float16 is one.
class CollectedWriter {
 public:
  /// `info` without rows, counts, windows and norm_limits, which come with `finish`.
  CollectedWriter(const std::filesystem::path& path, CollectedInfo info, const CollectedWriterOptions& options = {})
      : info_(std::move(info)),
        folder_(path, {.overwrite = options.overwrite, .marker = std::string(detail::collect_file)}),
        tokens_(folder_ / "tokens.npy") {
    if (info_.sites.empty()) throw_value("CollectedWriter: there is no site");
    require_positive("CollectedWriter: width", info_.width);
    if (!is_floating(info_.dtype)) throw_value("CollectedWriter: rows are floating-point numbers");
    shard_rows_ = (std::max)(Index{1}, options.shard_bytes / (info_.width * item_size(info_.dtype)));
    tokens_.write(tokens_header(0));
    // Early, so that DIR.partial can be told for what it is after a kill.
    detail::write_collect_json(folder_.partial(), info_);
    for (const Site& site : info_.sites)
      if (std::error_code error; !std::filesystem::create_directory(folder_ / to_string(site), error))
        throw_file((folder_ / to_string(site)).string(), ": cannot be created: ", error.message());
  }

  Index rows() const { return rows_; }  ///< appended so far

  void append(const CollectedRows& rows) {
    if (rows.sites.size() != info_.sites.size())
      throw_shape("CollectedWriter: rows of ", rows.sites.size(), " sites, not ", info_.sites.size());
    const Index count = static_cast<Index>(rows.origins.size());
    for (Index done = 0; done < count;) {
      if (shards_.empty()) open_shards();
      const Index n = (std::min)(count - done, shard_rows_ - shards_.front().rows());
      for (std::size_t s = 0; s < shards_.size(); ++s) {
        const ConstMatrixMap<float>& x = rows.sites[s];
        if (x.rows() != count || x.cols() != info_.width)
          throw_shape("CollectedWriter: rows [", x.rows(), " x ", x.cols(), "], not [", count, " x ", info_.width, "]");
        shards_[s].append(x.data() + done * info_.width, n, info_.width);
      }
      done += n;
      if (shards_.front().rows() == shard_rows_) close_shards();
    }
    for (const RowOrigin& origin : rows.origins) {
      const std::array<std::int32_t, 3> row{origin.token, origin.window, origin.position};
      tokens_.write(std::as_bytes(std::span(row)));
    }
    rows_ += count;
  }

  /// Makes the folder appear; returns what it says about itself. Errors: ValueError where there is no row.
  CollectedInfo finish(const CollectReport& report) {
    if (rows_ == 0)
      throw_value("collect: no row is left: ", report.counts.bos, " BOS rows, ", report.counts.norm,
                  " rows with a large norm and ", report.counts.not_finite, " rows with NaN or infinity were left out");
    info_.rows = rows_;
    info_.counts = report.counts;
    info_.windows = report.windows;
    info_.norm_limits = report.limits;
    close_shards();
    const std::string header = tokens_header(rows_);
    tokens_.write_at(0, std::as_bytes(std::span(header)));
    tokens_.commit();
    detail::write_collect_json(folder_.partial(), info_);
    folder_.commit();
    return info_;
  }

 private:
  static std::string tokens_header(Index rows) { return detail::npy_header(Dtype::int32, std::array<Index, 2>{rows, 3}); }

  void open_shards() {
    char name[32];
    std::snprintf(name, sizeof name, "rows-%05lld.npy", static_cast<long long>(shard_++));
    for (const Site& site : info_.sites) shards_.emplace_back(folder_ / to_string(site) / name, info_.width, info_.dtype);
  }
  void close_shards() {
    for (NpyRowWriter& shard : shards_) shard.finish();
    shards_.clear();
  }

  CollectedInfo info_;
  OutputFolder folder_;
  OutputFile tokens_;
  std::vector<NpyRowWriter> shards_;  ///< one a site, all with the same number of rows
  Index shard_ = 0, shard_rows_ = 0, rows_ = 0;
};

/// A folder that `collect` made, checked when it is opened; nothing is loaded.
/// Errors: FileError for what is missing, malformed or does not fit together.
class CollectedFolder {
 public:
  explicit CollectedFolder(std::filesystem::path path)
      : path_(std::move(path)), info_(detail::read_collect_json(path_ / detail::collect_file)), tokens_(path_ / "tokens.npy") {
    tokens_.require_readable<std::int32_t>();
    if (tokens_.dtype() != Dtype::int32 || tokens_.shape() != std::vector<Index>{info_.rows, 3})
      throw_file((path_ / "tokens.npy").string(), ": holds ", to_string(tokens_.dtype()), " ",
                 detail::shape_text(tokens_.shape()), ", not int32 [", info_.rows, ", 3] as collect.json says");
  }

  /// The folder that `path` is, or in which it is a site's folder (DIR/residual-15 of DIR) or a file of one; none where it is
  /// neither.
  static std::optional<CollectedFolder> find(const std::filesystem::path& path) {
    std::error_code error;
    if (std::filesystem::exists(path / detail::collect_file, error)) return CollectedFolder(path);
    std::filesystem::path site = std::filesystem::absolute(path, error).lexically_normal();
    if (!site.has_filename()) site = site.parent_path();  // "DIR/residual-15/"
    if (std::filesystem::is_regular_file(site, error)) site = site.parent_path();
    if (!std::filesystem::exists(site.parent_path() / detail::collect_file, error)) return std::nullopt;
    CollectedFolder folder(site.parent_path());
    for (const Site& known : folder.info_.sites)
      if (to_string(known) == site.filename()) {
        folder.chosen_ = known;
        return folder;
      }
    return std::nullopt;
  }

  const std::filesystem::path& path() const { return path_; }
  const CollectedInfo& info() const { return info_; }
  /// The site whose folder was named to `find`.
  const std::optional<Site>& named_site() const { return chosen_; }
  Index rows() const { return info_.rows; }

  /// The one site of the folder, or the one whose folder was named. Errors: FileError where there are several.
  Site site() const {
    if (chosen_) return *chosen_;
    if (info_.sites.size() == 1) return info_.sites[0];
    std::string known;
    for (const Site& site : info_.sites) known += (known.empty() ? "" : ", ") + to_string(site);
    throw_file(path_.string(), ": holds several sites; name the folder of one of them (", known, ")");
  }
  std::filesystem::path site_folder(const Site& site) const {
    if (std::find(info_.sites.begin(), info_.sites.end(), site) == info_.sites.end())
      throw_file(path_.string(), ": does not hold the site ", to_string(site));
    return path_ / to_string(site);
  }
  NpyFolder rows_of(const Site& site) const {
    NpyFolder rows(site_folder(site));
    if (rows.rows() != info_.rows || rows.width() != info_.width)
      throw_file(site_folder(site).string(), ": holds rows [", rows.rows(), ", ", rows.width(), "], collect.json says [",
                 info_.rows, ", ", info_.width, "]");
    return rows;
  }
  /// Where row 0 <= row < rows() comes from.
  RowOrigin origin(Index row) const {
    if (row < 0 || row >= info_.rows) throw_value(path_.string(), ": row ", row, " is not in [0, ", info_.rows, ")");
    std::array<std::int32_t, 3> numbers;
    std::memcpy(numbers.data(), tokens_.bytes().data() + static_cast<std::size_t>(row) * sizeof numbers, sizeof numbers);
    const RowOrigin origin{numbers[0], numbers[1], numbers[2]};
    if (origin.token < 0 || origin.window < 0 || origin.window >= info_.windows || origin.position < 0 ||
        origin.position >= info_.context)
      throw_file((path_ / "tokens.npy").string(), ": row ", row, " is token ", origin.token, " in window ", origin.window,
                 " at position ", origin.position, "; collect.json says ", info_.windows, " windows of ", info_.context);
    return origin;
  }

 private:
  std::filesystem::path path_;
  CollectedInfo info_;
  NpyArray tokens_;
  std::optional<Site> chosen_;
};

/// What `--data` means: the folder of the one site of a collected folder, or the path itself (a site's folder, a plain folder of
/// .npy rows, one .npy file). Errors: FileError for a collected folder with several sites.
inline std::filesystem::path rows_path(const std::filesystem::path& data) {
  std::error_code error;
  if (!std::filesystem::exists(data / detail::collect_file, error)) return data;
  const CollectedFolder folder(data);
  return folder.site_folder(folder.site());
}

}  // namespace sae::inline SAE_ABI

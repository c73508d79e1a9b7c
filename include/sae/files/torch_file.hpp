#pragma once
#include <sae/files/array_view.hpp>
#include <sae/files/pickle.hpp>
#include <sae/files/torch_storage.hpp>
#include <sae/files/zip.hpp>

#include <functional>
#include <map>
#include <memory>
#include <optional>

namespace sae::inline SAE_ABI {

enum class TorchKind : std::uint8_t { none, boolean, integer, number, text, list, tuple, dict, tensor };

namespace detail {

/// What a pickle of torch.save holds, in the archive's bytes.
struct TorchTree {
  std::string file;  ///< for messages
  PickleTree pickle;
  std::vector<ArrayView> tensors;  ///< a tensor's number in the pickle -> where it lies
};

inline constexpr std::size_t torch_axes_cap = 8;

/// The globals of torch.save's pickles: OrderedDict, the classes of storages, and the two functions that make tensors of them.
/// Source: torch/_utils.py `_rebuild_tensor_v2`, `_rebuild_parameter`; torch/serialization.py `persistent_id`.
class TorchObjects {
 public:
  /// The bytes of a storage, by its key.
  using Storages = std::function<std::span<const std::byte>(std::string_view)>;

  /// \param expanded_cap  bytes of the largest tensor that may repeat the numbers of its storage (a stride of 0)
  TorchObjects(TorchTree& tree, Storages storages, std::size_t expanded_cap)
      : tree_(tree), storages_(std::move(storages)), expanded_cap_(static_cast<Index>(expanded_cap)) {}

  std::int64_t global(std::string_view module, std::string_view name) const {
    if (module == "collections" && name == "OrderedDict") return ordered_dict;
    if (module == "torch._utils" && name == "_rebuild_tensor_v2") return rebuild_tensor;
    if (module == "torch._utils" && name == "_rebuild_parameter") return rebuild_parameter;
    if (module == "torch")
      for (const Dtype dtype : all_dtypes)
        if (!torch_storage(dtype).empty() && torch_storage(dtype) == name) return storage + static_cast<int>(dtype);
    fail("holds ", printable(module), ".", printable(name),
         ", which is not read (nothing in a file is executed): save the state_dict() instead, of tensors, numbers and texts "
         "alone");
  }
  bool is_dict(std::int64_t global) const { return global == ordered_dict; }

  std::uint32_t persistent(PickleTree& values, std::uint32_t id) {
    const auto part = [&](std::size_t i) -> const PickleValue& { return values.values[values.values[id].items[i]]; };
    if (values.values[id].kind != PickleKind::tuple || values.values[id].items.size() != 5 || part(0).text() != "storage" ||
        part(1).kind != PickleKind::global || part(1).integer < storage || part(2).kind != PickleKind::text ||
        part(2).text().size() > pickle_key_cap || part(4).kind != PickleKind::integer)
      fail("refers to something that is not (\"storage\", class, key, device, size)");
    Storage out;
    out.dtype = static_cast<Dtype>(part(1).integer - storage);
    out.key = part(2).text();
    out.elements = part(4).integer;
    const auto bytes = storages_(out.key);
    out.data = bytes.data();
    if (out.elements < 0 || out.elements > static_cast<Index>(bytes.size()) ||
        out.elements * item_size(out.dtype) != static_cast<Index>(bytes.size()))
      fail("says ", out.elements, " numbers of ", to_string(out.dtype), " in storage ", printable(out.key), ", which has ",
           bytes.size(), " bytes");
    storage_.push_back(out);
    return object(values, -static_cast<std::int64_t>(storage_.size()));
  }

  std::uint32_t call(PickleTree& values, std::int64_t global, std::uint32_t arguments) {
    const std::vector<std::uint32_t>& items = values.values[arguments].items;
    const auto part = [&](std::size_t i) -> const PickleValue& { return values.values[items[i]]; };
    const auto is_object = [&](bool tensor) {
      return !items.empty() && part(0).kind == PickleKind::object && (part(0).integer >= 0) == tensor;
    };
    if (global == rebuild_parameter) {
      if (items.size() != 3 || !is_object(true)) fail("makes a Parameter of what is no tensor");
      return items[0];
    }
    if (global != rebuild_tensor) fail("calls a class of storages");
    if (items.size() < 6 || items.size() > 7 || !is_object(false) || part(1).kind != PickleKind::integer ||
        part(2).kind != PickleKind::tuple || part(3).kind != PickleKind::tuple)
      fail("makes a tensor of something that is not (storage, offset, size, stride, ...)");
    const Storage& from = storage_[static_cast<std::size_t>(-part(0).integer - 1)];
    const Index offset = part(1).integer;
    ArrayView view{from.dtype, numbers(values, part(2)), numbers(values, part(3)), nullptr};
    const auto wrong = [&](const auto&... words) {
      fail("has a tensor of size ", shape_text(view.shape), ", stride ", shape_text(view.strides), ", offset ", offset, " ",
           words...);
    };
    if (view.shape.size() > torch_axes_cap || view.strides.size() > torch_axes_cap)
      fail("has a tensor of more than ", torch_axes_cap, " axes");
    if (view.shape.size() != view.strides.size()) wrong("with another number of strides than of axes");
    Index elements = 0, bytes = 0, last = offset;
    bool inside = offset >= 0 && offset <= from.elements;
    for (std::size_t axis = 0; inside && axis < view.shape.size(); ++axis)
      inside = view.shape[axis] >= 0 && view.strides[axis] >= 0;
    inside = inside && byte_count(view.shape, view.dtype, elements, bytes);
    for (std::size_t axis = 0; inside && elements > 0 && axis < view.shape.size(); ++axis) {
      const Index steps = view.shape[axis] - 1, stride = view.strides[axis];
      inside = steps == 0 || stride <= (from.elements - last) / steps;
      if (inside) last += steps * stride;
    }
    if (!inside || (elements > 0 && last >= from.elements))
      wrong("that is not inside of the ", from.elements, " numbers of storage ", printable(from.key));
    if (elements > from.elements && bytes > expanded_cap_)
      wrong("that repeats the numbers of its storage to ", bytes, " bytes");
    if (elements == 0) view.strides.clear();
    view.data = from.data + offset * item_size(view.dtype);
    tree_.tensors.push_back(std::move(view));
    return object(values, static_cast<std::int64_t>(tree_.tensors.size()) - 1);
  }

  void require_value(const PickleValue& value) const {
    if (value.kind == PickleKind::global || value.integer < 0)
      fail("holds a class or a storage where a value should be; save tensors, numbers and texts alone");
  }

 private:
  enum : std::int64_t { ordered_dict, rebuild_tensor, rebuild_parameter, storage };

  struct Storage {
    Dtype dtype;
    std::string_view key;
    Index elements;
    const std::byte* data;
  };

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_file(tree_.file, ": its pickle ", parts...);
  }
  static std::uint32_t object(PickleTree& values, std::int64_t number) {
    PickleValue& made = values.values.emplace_back();
    made.kind = PickleKind::object;
    made.integer = number;
    return static_cast<std::uint32_t>(values.values.size() - 1);
  }
  std::vector<Index> numbers(const PickleTree& values, const PickleValue& tuple) const {
    std::vector<Index> out;
    for (const std::uint32_t id : tuple.items) {
      if (out.size() > torch_axes_cap) break;  // refused by its number
      if (values.values[id].kind != PickleKind::integer) fail("has a tensor whose sizes are not integers");
      out.push_back(values.values[id].integer);
    }
    return out;
  }

  TorchTree& tree_;
  Storages storages_;
  Index expanded_cap_;
  std::vector<Storage> storage_;
};

/// How many opcodes a pickle in a file of so many bytes may have: each costs at most about 100 bytes of memory.
inline std::size_t torch_opcode_cap(std::size_t file_bytes) { return (std::size_t{1} << 19) + file_bytes / 128; }
inline std::size_t torch_memory_cap(std::size_t file_bytes) { return 2 * file_bytes + (std::size_t{64} << 20); }

/// Reads data.pkl; all that it finds lies inside of the storages' bytes.
inline void read_torch_pickle(TorchTree& tree, std::span<const std::byte> pickle, std::size_t file_bytes,
                              TorchObjects::Storages storages) {
  TorchObjects objects(tree, std::move(storages), torch_memory_cap(file_bytes));
  tree.pickle = Unpickler(pickle, tree.file, objects, torch_opcode_cap(file_bytes)).read();
}

}  // namespace detail

/// A value of a torch file: a view, good as long as its file is.
/// \throws FileError  by what asks for another kind than it is: file, path ("optimizer.param_groups.0.lr") and both kinds.
class TorchValue {
 public:
  TorchValue(const detail::TorchTree& tree, std::uint32_t id, std::string path)
      : tree_(&tree), id_(id), path_(std::move(path)) {}

  TorchKind kind() const {
    return value().kind == detail::PickleKind::object ? TorchKind::tensor : static_cast<TorchKind>(value().kind);
  }
  bool is(TorchKind wanted) const { return kind() == wanted; }
  /// Keys and numbers of parts from the root on, with dots; "" is the root.
  const std::string& path() const { return path_; }

  bool boolean() const { return require(TorchKind::boolean).integer != 0; }
  Index integer() const { return require(TorchKind::integer).integer; }
  /// Of an integer as well.
  double number() const {
    return is(TorchKind::integer) ? static_cast<double>(value().integer) : require(TorchKind::number).number;
  }
  std::string_view text() const { return require(TorchKind::text).text(); }
  const ArrayView& tensor() const { return tree_->tensors[static_cast<std::size_t>(require(TorchKind::tensor).integer)]; }
  /// As a matrix (`read_matrix`).
  template <class T>
  Tensor<T> read(bool transposed = false) const {
    return read_matrix<T>(tensor(), tree_->file, path_, transposed);
  }

  /// Parts of a list, a tuple or a dict; 0 of everything else.
  Index size() const { return static_cast<Index>(value().items.size()) / (is(TorchKind::dict) ? 2 : 1); }
  /// Part i of a list or tuple, or value i of a dict in its own order, 0 <= i < size().
  TorchValue operator[](Index i) const {
    const bool dict = is(TorchKind::dict);
    return part(static_cast<std::size_t>(dict ? 2 * i + 1 : i), dict ? key_text(i) : detail::concat(i));
  }
  /// Key i of a dict: a text, or an integer in decimal digits.
  std::string key_text(Index i) const {
    return detail::pickle_key(tree_->pickle.values[value().items[static_cast<std::size_t>(2 * i)]]);
  }
  /// The value of a text key of a dict; nothing where there is none, or where this is no dict.
  std::optional<TorchValue> find(std::string_view key) const {
    if (!is(TorchKind::dict)) return {};
    const std::vector<std::uint32_t>& items = value().items;
    for (std::size_t i = 0; i < items.size(); i += 2)
      if (const detail::PickleValue& found = tree_->pickle.values[items[i]];
          found.kind == detail::PickleKind::text && found.text() == key)
        return part(i + 1, std::string(key));
    return {};
  }
  /// \throws FileError  there is no such key.
  TorchValue at(std::string_view key) const {
    require(TorchKind::dict);
    if (std::optional<TorchValue> found = find(key)) return *std::move(found);
    throw_file(tree_->file, ": ", shown(), " has no key ", key);
  }

 private:
  const detail::PickleValue& value() const { return tree_->pickle.values[id_]; }
  std::string shown() const { return path_.empty() ? std::string("its value") : detail::printable(path_); }
  static std::string_view name(TorchKind kind) {
    return kind == TorchKind::tensor ? "a tensor" : to_string(static_cast<detail::PickleKind>(kind));
  }
  const detail::PickleValue& require(TorchKind wanted) const {
    if (!is(wanted)) throw_file(tree_->file, ": ", shown(), " is ", name(kind()), ", ", name(wanted), " is needed");
    return value();
  }
  TorchValue part(std::size_t item, const std::string& key) const {
    return {*tree_, value().items[item], path_.empty() ? key : detail::concat(path_, ".", key)};
  }

  const detail::TorchTree* tree_;
  std::uint32_t id_;
  std::string path_;
};

namespace detail {

/// All tensors of a value by their paths. As one part may stand in several places, their number is bounded by the file's size.
class TorchNames {
 public:
  TorchNames(const TorchTree& tree, std::size_t file_bytes)
      : tree_(tree),
        visits_(4096),
        tensors_((std::size_t{1} << 15) + file_bytes / 512),
        letters_((std::size_t{8} << 20) + file_bytes) {
    for (const PickleValue& value : tree.pickle.values) visits_ += 8 * value.items.size();
  }

  std::map<std::string, ArrayView, std::less<>> read() {
    visit(tree_.pickle.root);
    return std::move(out_);
  }

 private:
  void spend(std::size_t& left, std::size_t what) const {
    if (what > left) throw_file(tree_.file, ": its tensors stand in more places than a file of this size should have");
    left -= what;
  }
  // As deep as the pickle, which is bounded.
  void visit(std::uint32_t id) {
    const PickleValue& value = tree_.pickle.values[id];
    if (value.kind == PickleKind::object) {
      spend(tensors_, 1);
      spend(letters_, path_.size());
      if (!out_.emplace(path_, tree_.tensors[static_cast<std::size_t>(value.integer)]).second)
        throw_file(tree_.file, ": two tensors are both called ", printable(path_));
    }
    const bool dict = value.kind == PickleKind::dict;
    for (std::size_t i = dict ? 1 : 0; i < value.items.size(); i += dict ? 2 : 1) {
      spend(visits_, 1);
      const PickleValue& part = tree_.pickle.values[value.items[i]];
      if (part.kind != PickleKind::object && part.items.empty()) continue;
      const std::size_t before = path_.size();
      if (before > 0) path_ += '.';
      path_ += dict ? pickle_key(tree_.pickle.values[value.items[i - 1]]) : concat(i);
      spend(letters_, path_.size() - before);
      visit(value.items[i]);
      path_.resize(before);
    }
  }

  const TorchTree& tree_;
  std::size_t visits_, tensors_, letters_;
  std::string path_;
  std::map<std::string, ArrayView, std::less<>> out_;
};

}  // namespace detail

/// A mapped file of torch.save (the zip container, torch 1.6 and later) with dicts, lists, tuples, numbers, texts and tensors: state
/// dictionaries, checkpoints. Its pickle is read by a machine that knows these and nothing else (pickle.hpp), so that no file
/// executes anything; tensors stay in the map, with their strides and offsets, each checked to lie inside of its storage. Attributes of
/// OrderedDicts (`_metadata`) are dropped. Any number of threads may read.
/// \throws FileError  one sentence: another container (and how to convert it), another class in it (its name), a wrong tensor.
class TorchFile {
 public:
  explicit TorchFile(const std::filesystem::path& path, ZipOptions options = {}) : TorchFile(MappedFile(path), options) {}
  /// Of bytes in memory, which have to stay; `name` is for messages.
  TorchFile(std::span<const std::byte> bytes, std::string name, ZipOptions options = {})
      : zip_((require_container(bytes, name), bytes), std::move(name), options) {
    open();
  }

  const std::string& path() const { return zip_.path(); }
  const ZipFile& zip() const { return zip_; }
  TorchValue root() const { return {*tree_, tree_->pickle.root, ""}; }
  /// All tensors by their paths: keys and numbers of parts with dots ("state_dict.encoder.weight", "ae.k").
  /// \throws FileError  two have one path.
  std::map<std::string, ArrayView, std::less<>> tensors() const { return detail::TorchNames(*tree_, zip_.size()).read(); }
  /// Bytes of memory that deflated entries take; torch.save stores all.
  std::size_t unpacked() const { return zip_.unpacked(); }
  /// Reads everything once and compares its sums; opening does so only with the pickle.
  void check() const {
    for (const ZipEntry& entry : zip_.entries()) zip_.check(entry);
  }

 private:
  TorchFile(MappedFile map, ZipOptions options) : zip_((require_container(map.bytes(), map.path()), std::move(map)), options) {
    open();
  }

  static void require_container(std::span<const std::byte> bytes, std::string_view name) {
    constexpr std::string_view legacy("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19", 14);  // the pickle of its magic number
    if (bytes.size() >= legacy.size() && std::memcmp(bytes.data(), legacy.data(), legacy.size()) == 0)
      throw_file(name,
                 ": is in torch's container from before 1.6, which is not read; convert it in Python:"
                 " torch.save(torch.load(old, map_location='cpu'), new)");
  }

  void open() {
    tree_ = std::make_unique<detail::TorchTree>();
    tree_->file = path();
    constexpr std::string_view pickle = "/data.pkl";
    std::string_view folder;
    for (const ZipEntry& entry : zip_.entries()) {
      if (!entry.name.ends_with(pickle) || entry.name.find('/') != entry.name.size() - pickle.size()) continue;
      if (!folder.empty()) throw_file(path(), ": holds two data.pkl; a file of torch.save has one");
      folder = entry.name.substr(0, entry.name.size() - pickle.size());
    }
    if (folder.empty()) throw_file(path(), ": is a zip file without a data.pkl in a folder, so not one of torch.save");
    const auto entry = [&](std::string_view name) { return zip_.find(detail::concat(folder, "/", name)); };
    if (entry("constants.pkl") != nullptr)
      throw_file(path(),
                 ": is a TorchScript archive, which is a program; convert it in Python:"
                 " torch.save(torch.jit.load(old).state_dict(), new)");
    if (const ZipEntry* const order = entry("byteorder")) {
      const auto bytes = zip_.bytes(*order);
      if (const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size()); text != "little")
        throw_file(path(), ": has byte order ", detail::printable(text),
                   "; little is read: load and save it on an ordinary machine");
    }
    zip_.check(*entry("data.pkl"));
    detail::read_torch_pickle(*tree_, zip_.bytes(*entry("data.pkl")), zip_.size(), [&](std::string_view key) {
      const ZipEntry* const found = entry(detail::concat("data/", key));
      if (found == nullptr) throw_file(path(), ": its pickle refers to storage ", detail::printable(key), ", which is missing");
      return zip_.bytes(*found);
    });
  }

  ZipFile zip_;
  std::unique_ptr<detail::TorchTree> tree_;
};

}  // namespace sae::inline SAE_ABI

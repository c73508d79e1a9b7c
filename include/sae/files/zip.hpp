#pragma once
#include <sae/files/crc32.hpp>
#include <sae/files/mapped_file.hpp>
#include <sae/files/printable.hpp>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <vector>

namespace sae::inline SAE_ABI {

/// One file inside of a zip file.
struct ZipEntry {
  std::string_view name;             ///< in the archive's own bytes
  std::size_t header = 0, data = 0;  ///< where its local header and its data begin in the archive
  std::size_t packed = 0, size = 0;  ///< bytes in the archive, and unpacked
  std::uint32_t crc = 0;             ///< of what is unpacked
  bool deflated = false;             ///< else stored, packed == size
};

struct ZipOptions {
  /// The most bytes that deflated entries may unpack to, all that are read together; -1: twice the archive and 64 MiB.
  Index unpack_cap = -1;
};

namespace detail {

/// What unpacks raw deflate (RFC 1951) to exactly the bytes of `to`: "" or what is wrong with `from`. Empty until files/zlib.hpp is
/// included anywhere in the program.
using Inflate = std::string_view (*)(std::span<const std::byte> from, std::span<std::byte> to);
inline constinit Inflate inflater = nullptr;

/// No stream of deflate gives more: the shortest code, two bits, repeats 258 bytes at most.
inline constexpr std::size_t deflate_ratio = 1032;

template <class T>
T little_endian(std::span<const std::byte> bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

/// Nothing is ever extracted; a name that could lead out of a folder is no name all the same.
inline bool is_zip_name(std::string_view name) {
  if (name.empty() || name.front() == '/' || name.find('\\') != name.npos || name.find('\0') != name.npos) return false;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return false;
    begin = end + 1;
  }
  return true;
}

class ZipReader {
 public:
  ZipReader(std::span<const std::byte> bytes, std::string_view file) : bytes_(bytes), file_(file) {}

  std::vector<ZipEntry> read() {
    find_directory();
    std::vector<ZipEntry> entries;
    entries.reserve(count_);
    std::size_t at = begin_;
    for (std::size_t i = 0; i < count_; ++i) entries.push_back(entry(at));
    if (at != end_) throw_file(file_, ": the zip directory has ", end_ - at, " bytes behind its ", count_, " entries");

    std::sort(entries.begin(), entries.end(), [](const ZipEntry& a, const ZipEntry& b) { return a.header < b.header; });
    for (std::size_t i = 1; i < entries.size(); ++i)
      if (entries[i - 1].data + entries[i - 1].packed > entries[i].header)
        throw_file(file_, ": zip entry ", printable(entries[i].name), " begins inside of ", printable(entries[i - 1].name));
    std::sort(entries.begin(), entries.end(), [](const ZipEntry& a, const ZipEntry& b) { return a.name < b.name; });
    for (std::size_t i = 1; i < entries.size(); ++i)
      if (entries[i - 1].name == entries[i].name)
        throw_file(file_, ": zip entry ", printable(entries[i].name), " stands in the directory twice");
    return entries;
  }

 private:
  template <class T>
  T get(std::size_t at) const {
    return little_endian<T>(bytes_, at);
  }
  std::size_t get16(std::size_t at) const { return get<std::uint16_t>(at); }
  std::size_t get32(std::size_t at) const { return get<std::uint32_t>(at); }
  std::string_view text(std::size_t at, std::size_t size) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + at, size};
  }
  bool signature(std::size_t at, std::string_view two) const { return text(at, 2) == "PK" && text(at + 2, 2) == two; }

  /// The end record is the last thing of the file, behind it only its own comment of 64 KiB at most.
  void find_directory() {
    constexpr std::size_t record = 22;
    if (bytes_.size() < record || !(signature(0, "\x03\x04") || signature(0, "\x05\x06")))
      throw_file(file_, ": is not a zip file (it must begin with PK)");
    std::size_t at = bytes_.size() - record;
    const std::size_t last = at > 0xffff ? at - 0xffff : 0;
    while (!(signature(at, "\x05\x06") && get16(at + 20) == bytes_.size() - record - at))
      if (at-- == last) throw_file(file_, ": has no zip directory at its end; the file may have been cut off");

    std::uint64_t disk = get16(at + 4), first = get16(at + 6), here = get16(at + 8), all = get16(at + 10);
    std::uint64_t size = get32(at + 12), begin = get32(at + 16);
    end_ = at;
    // Where a zip64 locator stands before it, the zip64 record has the numbers, and those that fit stand in both.
    if (at >= 20 && signature(at - 20, "\x06\x07")) {
      const std::uint64_t where = get<std::uint64_t>(at - 12);
      if (where > at - 20 || at - 20 - where < 56 || !signature(where, "\x06\x06") ||
          get<std::uint64_t>(where + 4) != at - 20 - where - 12)
        throw_file(file_, ": its zip64 record is not where it should be, at byte ", where);
      const auto take = [&](std::uint64_t& small, std::uint64_t large, std::uint64_t unset) {
        if (small != unset && small != large) throw_file(file_, ": its zip64 record and its end record do not agree");
        small = large;
      };
      take(disk, get32(where + 16), 0xffff);
      take(first, get32(where + 20), 0xffff);
      take(here, get<std::uint64_t>(where + 24), 0xffff);
      take(all, get<std::uint64_t>(where + 32), 0xffff);
      take(size, get<std::uint64_t>(where + 40), 0xffffffff);
      take(begin, get<std::uint64_t>(where + 48), 0xffffffff);
      if (get32(at - 4) > 1) disk = 1;
      end_ = static_cast<std::size_t>(where);
    }
    if (disk != 0 || first != 0 || here != all) throw_file(file_, ": is one part of a zip file of several parts");
    if (begin > end_ || size != end_ - begin)
      throw_file(file_, ": its zip directory, ", size, " bytes at byte ", begin, ", does not end at byte ", end_,
                 ", where the end record begins");
    constexpr std::size_t smallest = 46 + 30 + 2;  // both headers with a name of one byte
    if (all > bytes_.size() / smallest)
      throw_file(file_, ": its zip directory says ", all, " entries, which do not fit in the file");
    begin_ = static_cast<std::size_t>(begin);
    count_ = static_cast<std::size_t>(all);
  }

  /// The entry of the directory at `at`, which moves behind it.
  ZipEntry entry(std::size_t& at) const {
    constexpr std::size_t record = 46;
    if (end_ - at < record || !signature(at, "\x01\x02"))
      throw_file(file_, ": its zip directory has no entry at byte ", at, ", where one should begin");
    const std::size_t name_size = get16(at + 28), extra = get16(at + 30), comment = get16(at + 32);
    if (end_ - at - record < name_size + extra + comment) throw_file(file_, ": its zip directory ends inside of an entry");
    ZipEntry out;
    out.name = text(at + record, name_size);
    if (!is_zip_name(out.name))
      throw_file(file_, ": zip entry \"", printable(out.name), "\": a name is a relative path with / and without .. and \\");
    const std::string shown = printable(out.name);
    const auto flags = get16(at + 8), method = get16(at + 10);
    out.crc = get<std::uint32_t>(at + 16);
    std::uint64_t packed = get32(at + 20), size = get32(at + 24), disk = get16(at + 34), header = get32(at + 42);
    zip64(at + record + name_size, extra, shown, size, packed, header, disk);
    at += record + name_size + extra + comment;

    constexpr std::size_t encrypted = 0x2041;  // bits 0, 6 and 13
    if ((flags & encrypted) != 0) throw_file(file_, ": zip entry ", shown, " is encrypted");
    if (disk != 0) throw_file(file_, ": zip entry ", shown, " lies in another part of a zip file of several parts");
    if (method != 0 && method != 8)
      throw_file(file_, ": zip entry ", shown, " is packed by method ", method, "; stored (0) and deflated (8) ones are read");
    out.deflated = method == 8;
    local_header(out, header, packed, method, shown);
    out.packed = static_cast<std::size_t>(packed);
    if (!out.deflated && size != packed)
      throw_file(file_, ": zip entry ", shown, " is stored in ", packed, " bytes but should have ", size);
    if (out.deflated && size > packed * deflate_ratio)  // packed is inside of the file by now
      throw_file(file_, ": zip entry ", shown, " says that its ", packed, " bytes unpack to ", size,
                 ", more than deflate can do");
    out.size = static_cast<std::size_t>(size);
    return out;
  }

  /// Fields that are all ones in the directory stand in the extra field 1, in this order. numpy writes one even where it says nothing.
  void zip64(std::size_t at, std::size_t left, const std::string& shown, std::uint64_t& size, std::uint64_t& packed,
             std::uint64_t& header, std::uint64_t& disk) const {
    std::size_t value = 0, value_end = 0;
    while (left >= 4) {
      const std::size_t length = get16(at + 2);
      if (length > left - 4) throw_file(file_, ": zip entry ", shown, " has an extra field that runs past its end");
      if (get16(at) == 1 && value == 0) value = at + 4, value_end = value + length;
      at += 4 + length;
      left -= 4 + length;
    }
    const auto take = [&](std::uint64_t& field, std::uint64_t unset, std::size_t bytes) {
      if (field != unset) return;
      if (value == 0 || value_end - value < bytes)
        throw_file(file_, ": zip entry ", shown, " has no zip64 field for a number that does not fit in the others");
      field = bytes == 8 ? get<std::uint64_t>(value) : get32(value);
      value += bytes;
    };
    take(size, 0xffffffff, 8);
    take(packed, 0xffffffff, 8);
    take(header, 0xffffffff, 8);
    take(disk, 0xffff, 4);
  }

  /// Sizes may be 0 there (a data descriptor follows the data), so that the directory alone is asked for them.
  void local_header(ZipEntry& out, std::uint64_t header, std::uint64_t packed, std::size_t method,
                    const std::string& shown) const {
    constexpr std::size_t record = 30;
    if (header > begin_ || begin_ - header < record || !signature(header, "\x03\x04"))
      throw_file(file_, ": zip entry ", shown, " has no header at byte ", header, ", where the directory says");
    out.header = static_cast<std::size_t>(header);
    const std::size_t left = begin_ - out.header - record, name_size = get16(out.header + 26), extra = get16(out.header + 28);
    if (name_size + extra > left || packed > left - name_size - extra)
      throw_file(file_, ": zip entry ", shown, ": ", packed, " bytes behind its header at byte ", header, " run past byte ",
                 begin_, ", where the directory begins");
    if (text(out.header + record, name_size) != out.name || get16(out.header + 8) != method)
      throw_file(file_, ": zip entry ", shown, " has another name or method in its own header than in the directory");
    out.data = out.header + record + name_size + extra;
  }

  std::span<const std::byte> bytes_;
  std::string_view file_;
  std::size_t begin_ = 0, end_ = 0, count_ = 0;  ///< of the directory
};

}  // namespace detail

/// A mapped zip file. Opening reads the directory at its end and each entry's own header, and checks: names once, every entry inside
/// of the file, none over another, no encryption, no parts, only stored and deflated ones. Data are read when they are asked for.
/// zip64, and entries whose sizes follow their data, are read. Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
///
/// Deflated entries need an inflater: include <sae/files/zlib.hpp> in one source of the program (CMake: link sae::zlib).
/// \throws FileError  one sentence with file and entry.
class ZipFile {
 public:
  explicit ZipFile(const std::filesystem::path& path, ZipOptions options = {}) : ZipFile(MappedFile(path), options) {}
  explicit ZipFile(MappedFile map, ZipOptions options = {}) : map_(std::move(map)), path_(map_.path()) {
    open(map_.bytes(), options);
  }
  /// Of bytes in memory, which have to stay; `name` is for messages.
  ZipFile(std::span<const std::byte> bytes, std::string name, ZipOptions options = {}) : path_(std::move(name)) {
    open(bytes, options);
  }

  const std::string& path() const { return path_; }
  std::size_t size() const { return bytes_.size(); }                 ///< of the archive, in bytes
  const std::vector<ZipEntry>& entries() const { return entries_; }  ///< in the order of their names
  /// nullptr where there is no such entry.
  const ZipEntry* find(std::string_view name) const {
    const auto at = std::lower_bound(entries_.begin(), entries_.end(), name,
                                     [](const ZipEntry& entry, std::string_view wanted) { return entry.name < wanted; });
    return at == entries_.end() || at->name != name ? nullptr : &*at;
  }

  /// The bytes of an entry: where they are stored in the map, unchecked (`check`); deflated ones are unpacked at the first call,
  /// checked, and kept until the file goes.   Not for several threads at once.
  std::span<const std::byte> bytes(const ZipEntry& entry) {
    if (!entry.deflated) return stored(entry);
    const auto found = unpacked_.find(entry.header);
    if (found != unpacked_.end()) return found->second;
    if (detail::inflater == nullptr)
      fail(entry,
           "is deflated, and the program has nothing to unpack it with: include <sae/files/zlib.hpp> in one of its sources and"
           " link sae::zlib (CMake: -DSAE_WITH_ZLIB=ON)");
    if (entry.size > left_)
      fail(entry, "unpacks to ", entry.size, " bytes, of which ", left_,
           " are left of those that may be unpacked (ZipOptions::unpack_cap)");
    Buffer<std::byte> out(entry.size);
    const std::string_view wrong = detail::inflater(bytes_.subspan(entry.data, entry.packed), out);
    if (!wrong.empty()) fail(entry, wrong);
    require_crc(entry, out);
    left_ -= entry.size;
    return unpacked_.emplace(entry.header, std::move(out)).first->second;
  }
  /// Bytes that were unpacked so far, which are memory of their own.
  std::size_t unpacked() const { return cap_ - left_; }

  /// Reads a stored entry's bytes once and compares their sum with that of the directory.
  void check(const ZipEntry& entry) const {
    if (!entry.deflated) require_crc(entry, stored(entry));
  }

 private:
  void open(std::span<const std::byte> bytes, ZipOptions options) {
    bytes_ = bytes;
    entries_ = detail::ZipReader(bytes_, path_).read();
    cap_ = left_ =
        options.unpack_cap >= 0 ? static_cast<std::size_t>(options.unpack_cap) : 2 * bytes_.size() + (std::size_t{64} << 20);
  }
  std::span<const std::byte> stored(const ZipEntry& entry) const { return bytes_.subspan(entry.data, entry.size); }
  void require_crc(const ZipEntry& entry, std::span<const std::byte> unpacked) const {
    if (crc32_sum(unpacked) != entry.crc)
      fail(entry, "is damaged: its bytes do not have the sum (CRC-32) that the directory says");
  }
  template <class... Parts>
  [[noreturn]] void fail(const ZipEntry& entry, const Parts&... parts) const {
    throw_file(path_, ": zip entry ", detail::printable(entry.name), " ", parts...);
  }

  MappedFile map_;
  std::string path_;
  std::span<const std::byte> bytes_;
  std::vector<ZipEntry> entries_;
  std::map<std::size_t, Buffer<std::byte>> unpacked_;  ///< by the place of their headers
  std::size_t cap_ = 0, left_ = 0;
};

}  // namespace sae::inline SAE_ABI

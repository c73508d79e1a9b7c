#pragma once
#include <sae/files/dtype.hpp>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// What the header of a .npy file says. Format: numpy/lib/format.py, versions 1.0, 2.0 and 3.0:
/// "\x93NUMPY", two version bytes, header length (16 or 32 bits), a Python dict in ASCII, then the numbers.
struct NpyHeader {
  Dtype dtype = Dtype::float32;
  std::vector<Index> shape;  ///< [] for a single number
  Index elements = 0;        ///< product of the shape
  std::size_t offset = 0;    ///< of the first number in the file, in bytes
  bool fortran = false;      ///< column by column: the first axis runs fastest
};

/// Which arrays of more than one axis are taken: row by row, or column by column as well (`NpyHeader::fortran`).
enum class NpyOrder { c, any };

namespace detail {

inline constexpr std::size_t npy_header_cap = std::size_t{1} << 16;  ///< bytes of text; numpy itself writes 118 and up
inline constexpr std::size_t npy_axes_cap = 32;

/// Reads the one form of Python dict that numpy writes; anything else is an error and nothing is evaluated.
class NpyDict {
 public:
  NpyDict(std::string_view text, std::string_view file) : text_(text), file_(file) {}

  void read(NpyHeader& header) {
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!next_is('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !std::exchange(has_descr, true)) {
        header.dtype = dtype();
      } else if (key == "fortran_order" && !std::exchange(has_order, true)) {
        header.fortran = boolean();
      } else if (key == "shape" && !std::exchange(has_shape, true)) {
        header.shape = shape();
      } else {
        throw_file(file_, ": npy header: the keys must be descr, fortran_order and shape, each once");
      }
      if (!next_is(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (at_ != text_.size()) fail("nothing more");
    if (!has_descr || !has_order || !has_shape)
      throw_file(file_, ": npy header: the keys must be descr, fortran_order and shape, each once");
    if (header.shape.size() < 2) header.fortran = false;
  }

 private:
  [[noreturn]] void fail(std::string_view wanted) const {
    throw_file(file_, ": npy header: expected ", wanted, " at character ", at_, " of the header");
  }
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool next_is(char c) {
    skip();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!next_is(c)) fail(concat("'", c, "'"));
  }
  std::string_view string() {
    skip();
    const char quote = at_ < text_.size() ? text_[at_] : '\0';
    if (quote != '\'' && quote != '"') fail("a quoted word");
    const std::size_t begin = ++at_;
    while (at_ < text_.size() && text_[at_] != quote) {
      const char c = text_[at_];
      const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
      if (!plain && c != '<' && c != '>' && c != '|' && c != '=') fail("a plain word");
      ++at_;
    }
    if (at_ == text_.size()) fail("a closing quote");
    return text_.substr(begin, at_++ - begin);
  }
  Dtype dtype() {
    if (next_is('[')) throw_file(file_, ": holds records (a structured dtype); an array of one kind of number is needed");
    const std::string_view descr = string();
    if (descr.size() == 3 && descr[0] == '>' && descr[2] != '1')
      throw_file(file_, ": holds big-endian numbers (", descr, "); save it with .astype('<", descr.substr(1), "')");
    for (const Dtype dtype : all_dtypes)
      if (dtype != Dtype::bfloat16 && descr == npy_descr(dtype)) return dtype;
    throw_file(file_, ": npy dtype ", descr,
               " is not read; it may be <f2, <f4, <f8, <i2, <i4, <i8, |i1, <u2, <u4, <u8, |u1 or |b1");
  }
  bool boolean() {
    skip();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return value;
      }
    }
    fail("True or False");
  }
  std::vector<Index> shape() {
    std::vector<Index> sizes;
    expect('(');
    bool comma = true;
    while (!next_is(')')) {
      if (!comma) fail("',' or ')'");
      if (sizes.size() == npy_axes_cap) throw_file(file_, ": npy header: the shape has more than ", npy_axes_cap, " axes");
      Index size = 0;
      const char* const end = text_.data() + text_.size();
      const auto [next, error] = std::from_chars(text_.data() + at_, end, size);
      if (error == std::errc::result_out_of_range)
        throw_file(file_, ": npy header: a size of the shape does not fit in 63 bits");
      if (error != std::errc() || size < 0) fail("a size, 0 or more,");
      at_ = static_cast<std::size_t>(next - text_.data());
      sizes.push_back(size);
      comma = next_is(',');
    }
    if (sizes.size() == 1 && !comma) throw_file(file_, ": npy header: a shape of one axis is written (n,)");
    return sizes;
  }

 public:
  static constexpr std::string_view npy_descr(Dtype dtype) {
    constexpr std::string_view names[] = {"<f8", "<f4", "<f2", "<u2", "<i8", "<i4", "<i2",
                                          "|i1", "<u8", "<u4", "<u2", "|u1", "|b1"};
    return names[static_cast<std::size_t>(dtype)];
  }

 private:
  std::string_view text_, file_;
  std::size_t at_ = 0;
};

/// Header text of a whole file, padded so that the numbers begin at a multiple of 64 bytes, at 128 at least: a header can be
/// written first with 0 rows and replaced once their number is known. The same bytes as numpy writes.
inline std::string npy_header(Dtype dtype, std::span<const Index> shape) {
  std::string text = concat("{'descr': '", NpyDict::npy_descr(dtype), "', 'fortran_order': False, 'shape': (");
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    append(text, shape[i]);
  }
  text += shape.size() == 1 ? ",), }" : "), }";
  constexpr std::size_t prefix = 10;
  const std::size_t total = (std::max)((prefix + text.size() + 1 + 63) / 64 * 64, std::size_t{128});
  if (total - prefix > 0xffff) throw_value("npy: a shape of ", shape.size(), " axes is too long for the header");
  text.resize(total - prefix, ' ');
  text.back() = '\n';
  const char length[2] = {static_cast<char>(text.size() & 0xff), static_cast<char>(text.size() >> 8)};
  return concat(std::string_view("\x93NUMPY\x01\0", 8), std::string_view(length, 2), text);
}

}  // namespace detail

/// Checks a .npy file whole, given its bytes: magic, version, header length (64 KiB at most), dict, dtype, order, and that its
/// length is exactly header + product of the shape x item size.
/// \throws FileError  naming `file` and what is wrong.
inline NpyHeader parse_npy(std::span<const std::byte> bytes, std::string_view file, NpyOrder order = NpyOrder::c) {
  constexpr std::string_view magic("\x93NUMPY", 6);
  if (bytes.size() < 10 || std::memcmp(bytes.data(), magic.data(), magic.size()) != 0)
    throw_file(file, ": is not a .npy file (it must begin with \\x93NUMPY)");
  const auto byte = [&](std::size_t i) { return std::to_integer<std::size_t>(bytes[i]); };
  const std::size_t major = byte(6), minor = byte(7);
  if (major < 1 || major > 3 || minor != 0)
    throw_file(file, ": npy version ", major, ".", minor, " is not read (1.0, 2.0 and 3.0 are)");
  const std::size_t prefix = major == 1 ? 10 : 12;
  if (bytes.size() < prefix) throw_file(file, ": ends inside the npy header");
  std::size_t length = byte(8) | byte(9) << 8;
  if (major > 1) length |= byte(10) << 16 | byte(11) << 24;
  if (length > detail::npy_header_cap)
    throw_file(file, ": npy header of ", length, " bytes (at most ", detail::npy_header_cap, " are taken)");
  if (length > bytes.size() - prefix)
    throw_file(file, ": ends inside the npy header: ", length, " bytes of header, ", bytes.size() - prefix, " in the file");

  NpyHeader header;
  header.offset = prefix + length;
  std::string_view text(reinterpret_cast<const char*>(bytes.data()) + prefix, length);
  detail::NpyDict(text, file).read(header);
  if (header.fortran && order == NpyOrder::c)
    throw_file(file, ": is stored column by column (fortran_order); save it with numpy.ascontiguousarray");
  Index data = 0;
  if (!detail::byte_count(header.shape, header.dtype, header.elements, data))
    throw_file(file, ": npy shape ", detail::shape_text(header.shape), " has more bytes than 63 bits count");
  if (static_cast<std::size_t>(data) != bytes.size() - header.offset)
    throw_file(file, ": has ", bytes.size(), " bytes, but its npy header says ", header.offset, " + ", data, " (",
               to_string(header.dtype), " ", detail::shape_text(header.shape), ")");
  return header;
}

}  // namespace sae::inline SAE_ABI

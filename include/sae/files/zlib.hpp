#pragma once
#include <sae/files/zip.hpp>

#include <zlib.h>

#include <algorithm>
#include <new>

// Included in one source of a program (or in more), it gives all of them an inflater for deflated entries of zip files. Needs zlib; with
// CMake link sae::zlib.

namespace sae::inline SAE_ABI::detail {

inline std::string_view zlib_inflate(std::span<const std::byte> from, std::span<std::byte> to) {
  struct Stream : z_stream {
    Stream() : z_stream{} {
      if (::inflateInit2_(this, -MAX_WBITS, ZLIB_VERSION, static_cast<int>(sizeof(z_stream))) != Z_OK) throw std::bad_alloc();
    }
    ~Stream() { ::inflateEnd(this); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
  } stream;
  constexpr std::size_t piece = std::size_t{1} << 30;  // its counters have 32 bits
  Bytef beyond[1];                                     // one byte more than there should be tells that there are more
  bool full = false;
  for (;;) {
    const std::size_t in = std::min(from.size(), piece), out = std::min(to.size(), piece);
    full = out == 0;
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data()));
    stream.avail_in = static_cast<uInt>(in);
    stream.next_out = full ? beyond : reinterpret_cast<Bytef*>(to.data());
    stream.avail_out = full ? 1 : static_cast<uInt>(out);
    const int status = ::inflate(&stream, Z_NO_FLUSH);
    if (status == Z_MEM_ERROR) throw std::bad_alloc();
    if (full && stream.avail_out == 0) return "unpacks to more bytes than the directory says";
    from = from.subspan(in - stream.avail_in);
    if (!full) to = to.subspan(out - stream.avail_out);
    if (status == Z_STREAM_END) break;
    if (status == Z_BUF_ERROR || (status == Z_OK && from.empty() && stream.avail_out != 0))
      return "ends inside of its deflated data";
    if (status != Z_OK) return "is damaged: its bytes are not deflated data";
  }
  if (!to.empty()) return "unpacks to fewer bytes than the directory says";
  if (!from.empty()) return "has bytes behind the end of its deflated data";
  return {};
}

inline const bool zlib_registered = [] {
  inflater = zlib_inflate;
  return true;
}();

}  // namespace sae::inline SAE_ABI::detail

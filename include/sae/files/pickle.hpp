#pragma once
#include <sae/core/error.hpp>
#include <sae/core/types.hpp>
#include <sae/files/printable.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

namespace sae::inline SAE_ABI::detail {

enum class PickleKind : std::uint8_t { none, boolean, integer, number, text, list, tuple, dict, global, object };

constexpr std::string_view to_string(PickleKind kind) {
  constexpr std::string_view names[] = {"None",   "a bool",  "an integer", "a float", "a text",
                                        "a list", "a tuple", "a dict",     "a class", "an object"};
  return names[static_cast<std::size_t>(kind)];
}

/// One value of a pickle. Values are numbered in the order in which they were made; one may be part of several others.
struct PickleValue {
  PickleKind kind = PickleKind::none;
  std::uint32_t length = 0;  ///< text: in bytes
  union {
    std::int64_t integer = 0;  ///< boolean, integer; global and object: a number of the reader's
    double number;
    const char* begin;  ///< text, in the pickle
  };
  std::vector<std::uint32_t> items = {};  ///< list, tuple: the parts; dict: key, value, key, value, ...

  std::string_view text() const { return kind == PickleKind::text ? std::string_view(begin, length) : std::string_view(); }
};

/// The key of a dict as a text: an integer in decimal digits.
inline std::string pickle_key(const PickleValue& key) {
  return key.kind == PickleKind::text ? std::string(key.text()) : concat(key.integer);
}

/// The values of a pickle that was read, acyclic, `pickle_depth_cap` levels deep at most.
struct PickleTree {
  std::deque<PickleValue> values;
  std::uint32_t root = 0;
};

inline constexpr std::size_t pickle_depth_cap = 64;
inline constexpr std::size_t pickle_key_cap = 4096;  ///< bytes; one key may stand in many dicts, and is compared in each

/// Reads a pickle and executes nothing: of Python's pickle machine (Lib/pickletools.py) these opcodes alone are known, which are what
/// dicts, lists, tuples, numbers and texts are written with by protocols 2 to 5:
///   PROTO FRAME STOP MARK  NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8
///   EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS
///   BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET  GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
/// What globals are and give, `Objects` says, each by throwing where it is none of ours:
///   std::int64_t global(module, name)                    the number of a global
///   bool is_dict(global)                                 called without arguments it is a dict, which BUILD may give attributes (dropped)
///   std::uint32_t call(tree, global, arguments)          the value of global(*arguments), arguments being a tuple
///   std::uint32_t persistent(tree, id)                   the value that a persistent id stands for
///   void require_value(const PickleValue&)               whether an object, a global may stand in the result
///
/// Cost   one pass; memory in proportion to the opcodes, of which `cap` are taken.
/// \throws FileError  naming `file` and the byte of the pickle.
template <class Objects>
class Unpickler {
 public:
  Unpickler(std::span<const std::byte> bytes, std::string_view file, Objects& objects, std::size_t cap)
      : bytes_(bytes), file_(file), objects_(objects), cap_(cap) {}

  PickleTree read() {
    for (const bool value : {false, true}) make(PickleKind::boolean).integer = value ? 1 : 0;
    make(PickleKind::none);
    for (std::size_t ops = 0; step(); ++ops)
      if (ops == cap_) fail("has more than the ", cap_, " opcodes that are taken of a file of this size");
    finish();
    return std::move(tree_);
  }

 private:
  enum : std::uint32_t { id_false, id_true, id_none };

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_file(file_, ": its pickle ", parts...);
  }
  template <class... Parts>
  [[noreturn]] void fail_here(const Parts&... parts) const {
    throw_file(file_, ": its pickle, at byte ", op_, ", ", parts...);
  }

  std::span<const std::byte> take(std::uint64_t count) {
    if (count > bytes_.size() - at_) fail_here("needs ", count, " bytes more, ", bytes_.size() - at_, " are left");
    const auto out = bytes_.subspan(at_, static_cast<std::size_t>(count));
    at_ += out.size();
    return out;
  }
  template <class T>
  T take_number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view take_text(std::uint64_t count) {
    const auto part = take(count);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  std::string_view take_line() {
    const void* const end = at_ < bytes_.size() ? std::memchr(bytes_.data() + at_, '\n', bytes_.size() - at_) : nullptr;
    if (end == nullptr) fail_here("has a name without an end");
    const std::string_view line = take_text(static_cast<std::size_t>(static_cast<const std::byte*>(end) - bytes_.data()) - at_);
    ++at_;
    return line;
  }

  PickleValue& value(std::uint32_t id) { return tree_.values[id]; }
  PickleValue& make(PickleKind kind) {
    tree_.values.emplace_back().kind = kind;
    return tree_.values.back();
  }
  PickleValue& push(PickleKind kind) {
    stack_.push_back(static_cast<std::uint32_t>(tree_.values.size()));
    return make(kind);
  }
  std::uint32_t pop() {
    // What lies below a mark belongs to whom set it.
    if (stack_.size() == (marks_.empty() ? 0 : marks_.back())) fail_here("takes a value from an empty stack");
    const std::uint32_t id = stack_.back();
    stack_.pop_back();
    return id;
  }
  std::uint32_t top() {
    const std::uint32_t id = pop();
    stack_.push_back(id);
    return id;
  }
  std::size_t mark() {
    if (marks_.empty()) fail_here("looks for a mark that was not set");
    const std::size_t at = marks_.back();
    marks_.pop_back();
    return at;
  }
  /// A tuple of the values from `first` on.
  void tuple(std::size_t first) {
    std::vector<std::uint32_t> items(stack_.begin() + static_cast<std::ptrdiff_t>(first), stack_.end());
    stack_.resize(first);
    push(PickleKind::tuple).items = std::move(items);
  }
  void tuple_of(std::size_t count) {
    if (stack_.size() - (marks_.empty() ? 0 : marks_.back()) < count) fail_here("takes a value from an empty stack");
    tuple(stack_.size() - count);
  }
  /// The values from `first` on become parts of the list or dict before them.
  void append(std::size_t first, PickleKind kind) {
    const std::vector<std::uint32_t>::iterator begin = stack_.begin() + static_cast<std::ptrdiff_t>(first);
    if (kind == PickleKind::dict && (stack_.end() - begin) % 2 != 0) fail_here("gives a dict a key without a value");
    const std::size_t floor = marks_.empty() ? 0 : marks_.back();
    if (first <= floor) fail_here("takes a value from an empty stack");
    PickleValue& to = value(stack_[first - 1]);
    if (to.kind != kind) fail_here("adds parts to ", to_string(to.kind), ", where ", to_string(kind), " is needed");
    to.items.insert(to.items.end(), begin, stack_.end());
    stack_.resize(first);
  }
  void append_last(std::size_t count, PickleKind kind) {
    if (stack_.size() < count) fail_here("takes a value from an empty stack");
    append(stack_.size() - count, kind);
  }

  /// Python numbers its memo from 0 on without gaps.
  void put(std::size_t index) {
    if (index > cap_) fail_here("has a memo number ", index, ", more than its opcodes could have made");
    if (index >= memo_.size()) memo_.resize(index + 1, unset);
    memo_[index] = top();
  }
  void get(std::size_t index) {
    if (index >= memo_.size() || memo_[index] == unset) fail_here("asks for memo number ", index, ", which was not set");
    stack_.push_back(memo_[index]);
  }

  /// One opcode; false at the last one.
  bool step() {
    op_ = at_;
    if (at_ == bytes_.size()) fail("ends without its end");
    const auto op = take_number<std::uint8_t>();
    switch (op) {
      case 0x80: {  // PROTO
        const auto version = take_number<std::uint8_t>();
        if (version < 2 || version > 5) fail_here("is of protocol ", int{version}, "; 2 to 5 are read");
        return true;
      }
      case 0x95:  // FRAME: a length that nothing depends on
        if (const auto length = take_number<std::uint64_t>(); length > bytes_.size() - at_)
          fail_here("has a frame of ", length, " bytes, ", bytes_.size() - at_, " are left");
        return true;
      case '.': {  // STOP
        tree_.root = pop();
        if (!stack_.empty() || !marks_.empty()) fail_here("ends with more than one value");
        if (at_ != bytes_.size()) fail("has ", bytes_.size() - at_, " bytes behind its end");
        return false;
      }
      case '(': marks_.push_back(stack_.size()); return true;
      case 'N': stack_.push_back(id_none); return true;
      case 0x88: stack_.push_back(id_true); return true;
      case 0x89: stack_.push_back(id_false); return true;
      case 'J': push(PickleKind::integer).integer = take_number<std::int32_t>(); return true;
      case 'K': push(PickleKind::integer).integer = take_number<std::uint8_t>(); return true;
      case 'M': push(PickleKind::integer).integer = take_number<std::uint16_t>(); return true;
      case 0x8a: {  // LONG1: two's complement, as many bytes as are needed
        const auto part = take(take_number<std::uint8_t>());
        if (part.size() > 8) fail_here("has an integer of ", part.size(), " bytes; 8 are the most");
        std::uint64_t bits = !part.empty() && std::to_integer<int>(part.back()) >= 0x80 ? ~std::uint64_t{0} : 0;
        std::memcpy(&bits, part.data(), part.size());
        push(PickleKind::integer).integer = static_cast<std::int64_t>(bits);
        return true;
      }
      case 'G': {  // BINFLOAT: big-endian
        auto bits = take_number<std::array<unsigned char, 8>>();
        std::reverse(bits.begin(), bits.end());
        push(PickleKind::number).number = std::bit_cast<double>(bits);
        return true;
      }
      case 'X': text(take_number<std::uint32_t>()); return true;
      case 0x8c: text(take_number<std::uint8_t>()); return true;
      case 0x8d: text(take_number<std::uint64_t>()); return true;
      case ']': push(PickleKind::list); return true;
      case 'a': append_last(1, PickleKind::list); return true;
      case 'e': append(mark(), PickleKind::list); return true;
      case ')': push(PickleKind::tuple); return true;
      case 't': tuple(mark()); return true;
      case 0x85: tuple_of(1); return true;
      case 0x86: tuple_of(2); return true;
      case 0x87: tuple_of(3); return true;
      case '}': push(PickleKind::dict); return true;
      case 's': append_last(2, PickleKind::dict); return true;
      case 'u': append(mark(), PickleKind::dict); return true;
      case 'q': put(take_number<std::uint8_t>()); return true;
      case 'r': put(take_number<std::uint32_t>()); return true;
      case 0x94: put(memo_.size()); return true;
      case 'h': get(take_number<std::uint8_t>()); return true;
      case 'j': get(take_number<std::uint32_t>()); return true;
      case 'c': {  // GLOBAL
        const std::string_view module = take_line();
        global(module, take_line());
        return true;
      }
      case 0x93: {  // STACK_GLOBAL
        const std::uint32_t name = pop(), module = pop();
        if (value(name).kind != PickleKind::text || value(module).kind != PickleKind::text)
          fail_here("names a global by ", to_string(value(name).kind));
        global(value(module).text(), value(name).text());
        return true;
      }
      case 'R': {  // REDUCE
        const std::uint32_t arguments = pop(), callee = pop();
        if (value(callee).kind != PickleKind::global || value(arguments).kind != PickleKind::tuple)
          fail_here("calls ", to_string(value(callee).kind), " with ", to_string(value(arguments).kind));
        const std::int64_t what = value(callee).integer;
        if (objects_.is_dict(what)) {
          if (!value(arguments).items.empty()) fail_here("makes a dict of arguments, which is not read");
          push(PickleKind::dict);
        } else {
          const std::uint32_t made = objects_.call(tree_, what, arguments);
          stack_.push_back(made);
        }
        return true;
      }
      case 'b': {  // BUILD: the attributes of an OrderedDict (a state_dict's _metadata)
        pop();
        if (const PickleValue& to = value(top()); to.kind != PickleKind::dict)
          fail_here("gives attributes to ", to_string(to.kind), ", which is not read");
        return true;
      }
      case 'Q': {  // BINPERSID
        const std::uint32_t made = objects_.persistent(tree_, pop());
        stack_.push_back(made);
        return true;
      }
      default: break;
    }
    constexpr std::string_view hex = "0123456789abcdef";
    fail_here("has the opcode 0x", hex[op >> 4], hex[op & 15],
              ", which is not among those of dicts, lists, tuples, numbers and texts");
  }

  void text(std::uint64_t bytes) {
    if (bytes > 0xffffffff) fail_here("has a text of ", bytes, " bytes; 2^32 - 1 are the most");
    const std::string_view text = take_text(bytes);
    PickleValue& made = push(PickleKind::text);
    made.begin = text.data();
    made.length = static_cast<std::uint32_t>(text.size());
  }
  void global(std::string_view module, std::string_view name) {
    const std::int64_t what = objects_.global(module, name);
    push(PickleKind::global).integer = what;
  }

  /// What can be reached from the root must be values, in no cycle, not too deep, and keys once in their dicts.
  void finish() {
    constexpr std::uint8_t untouched = 0, open = 255;
    std::vector<std::uint8_t> height(tree_.values.size(), untouched);  // levels below a value, itself among them
    struct Place {
      std::uint32_t id;
      std::size_t next = 0;
    };
    std::vector<Place> path;
    const auto enter = [&](std::uint32_t id) {
      if (path.size() == pickle_depth_cap) fail("is nested deeper than ", pickle_depth_cap, " levels");
      const PickleValue& found = value(id);
      if (found.kind == PickleKind::global || found.kind == PickleKind::object) objects_.require_value(found);
      if (found.kind == PickleKind::dict) check_keys(found);
      height[id] = open;
      path.push_back({id});
    };
    enter(tree_.root);
    while (!path.empty()) {
      auto& [id, next] = path.back();
      const PickleValue& whole = value(id);
      if (next < whole.items.size()) {
        const std::uint32_t part = whole.items[next++];
        if (height[part] == open) fail("has ", to_string(value(part).kind), " that is a part of itself");
        if (height[part] == untouched) {
          enter(part);
        } else if (path.size() + height[part] > pickle_depth_cap) {
          fail("is nested deeper than ", pickle_depth_cap, " levels");
        }
        continue;
      }
      std::uint8_t deepest = 0;
      for (const std::uint32_t part : whole.items) deepest = std::max(deepest, height[part]);
      height[id] = static_cast<std::uint8_t>(deepest + 1);
      path.pop_back();
    }
  }
  void check_keys(const PickleValue& dict) {
    std::vector<std::uint32_t> keys;
    for (std::size_t i = 0; i < dict.items.size(); i += 2) {
      const PickleKind kind = value(dict.items[i]).kind;
      if (kind != PickleKind::text && kind != PickleKind::integer)
        fail("has a dict with ", to_string(kind), " as a key; keys are texts or integers");
      if (const std::size_t length = value(dict.items[i]).text().size(); length > pickle_key_cap)
        fail("has a dict with a key of ", length, " bytes; ", pickle_key_cap, " are the most");
      keys.push_back(dict.items[i]);
    }
    const auto order = [&](std::uint32_t id) {
      const PickleValue& key = value(id);
      return std::tuple(key.kind, key.text(), key.kind == PickleKind::integer ? key.integer : 0);
    };
    std::sort(keys.begin(), keys.end(), [&](std::uint32_t a, std::uint32_t b) { return order(a) < order(b); });
    const auto same = [&](std::uint32_t a, std::uint32_t b) { return order(a) == order(b); };
    if (const auto twice = std::adjacent_find(keys.begin(), keys.end(), same); twice != keys.end()) {
      fail("has a dict with the key ", printable(pickle_key(value(*twice))), " twice");
    }
  }

  static constexpr std::uint32_t unset = ~std::uint32_t{0};

  std::span<const std::byte> bytes_;
  std::string_view file_;
  Objects& objects_;
  std::size_t cap_, at_ = 0, op_ = 0;
  PickleTree tree_;
  std::vector<std::uint32_t> stack_, memo_;
  std::vector<std::size_t> marks_;
};

}  // namespace sae::inline SAE_ABI::detail

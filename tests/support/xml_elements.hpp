// A strict reader of the XML that the library writes: elements, quoted attributes, text; no comments, no doctype.
#pragma once
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sae_test {

struct XmlElement {
  std::string name{}, text{};  ///< text: of this element alone
  std::map<std::string, std::string> attributes{};
  std::vector<XmlElement> children{};

  const std::string& at(const std::string& attribute) const { return attributes.at(attribute); }
  double number(const std::string& attribute) const { return std::stod(at(attribute)); }
  bool is(const std::string& cls) const {
    const auto found = attributes.find("class");
    return found != attributes.end() && (" " + found->second + " ").find(" " + cls + " ") != std::string::npos;
  }
  /// All below it of a class, in the order of the file.
  std::vector<const XmlElement*> all(const std::string& cls) const {
    std::vector<const XmlElement*> out;
    collect(cls, out);
    return out;
  }

 private:
  void collect(const std::string& cls, std::vector<const XmlElement*>& out) const {
    for (const XmlElement& child : children) {
      if (child.is(cls)) out.push_back(&child);
      child.collect(cls, out);
    }
  }
};

/// Throws where the text is no well-formed element.
class XmlReader {
 public:
  static XmlElement read(std::string_view text) {
    XmlReader reader{text};
    XmlElement root = reader.element();
    reader.space();
    if (reader.at_ != text.size()) reader.fail("more behind the root");
    return root;
  }

 private:
  explicit XmlReader(std::string_view text) : text_(text) {}
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("XML, byte " + std::to_string(at_) + ": " + what);
  }
  char peek() const {
    if (at_ >= text_.size()) fail("ends early");
    return text_[at_];
  }
  void expect(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) fail("not " + std::string(word));
    at_ += word.size();
  }
  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  std::string name() {
    const std::size_t first = at_;
    while (std::string_view(" \t\r\n=/><\"'&").find(peek()) == std::string_view::npos) ++at_;
    if (at_ == first) fail("no name");
    return std::string(text_.substr(first, at_ - first));
  }
  /// Characters up to `end`, entities resolved.
  std::string until(char end) {
    std::string out;
    while (peek() != end) {
      const char c = text_[at_];
      if (c == '<') fail("< in a value");
      if (static_cast<unsigned char>(c) < 0x20 && c != '\t' && c != '\n' && c != '\r') fail("a control character");
      if (c != '&') {
        out += c;
        ++at_;
        continue;
      }
      bool known = false;
      for (const auto& [entity, meant] :
           std::map<std::string, char>{{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&#39;", '\''}})
        if (!known && text_.substr(at_, entity.size()) == entity) {
          out += meant, at_ += entity.size();
          known = true;
        }
      if (!known) fail("an unknown entity");
    }
    return out;
  }
  XmlElement element() {
    expect("<");
    XmlElement out;
    out.name = name();
    for (space(); peek() != '>' && peek() != '/'; space()) {
      const std::string key = name();
      expect("=\"");
      if (!out.attributes.emplace(key, until('"')).second) fail("attribute " + key + " twice");
      expect("\"");
    }
    if (peek() == '/') {
      expect("/>");
      return out;
    }
    expect(">");
    for (;;) {
      out.text += until('<');
      if (text_.substr(at_, 2) == "</") break;
      out.children.push_back(element());
    }
    expect("</" + out.name + ">");
    return out;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace sae_test

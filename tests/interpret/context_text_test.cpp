#include <sae/interpret/context_text.hpp>

#include <vector>

#include "catch_compat.hpp"

using namespace sae;

TEST_CASE("a context is one line with its token marked", "[interpret]") {
  const std::vector<std::string> pieces = {"the", " old", " captain", " said\n", "\"Aye\""};
  CHECK(context_text(pieces, 2) == "the old[[ captain]] said\\n\"Aye\"");
  CHECK(context_text(pieces, 0) == "[[the]] old captain said\\n\"Aye\"");
  CHECK(context_text(pieces, 4, {"<", ">"}) == "the old captain said\\n<\"Aye\">");
  CHECK_THROWS_AS(context_text(pieces, 5), ValueError);
  CHECK_THROWS_AS(context_text({}, 0), ValueError);
}

TEST_CASE("nothing that a terminal obeys or cannot read stays in a text", "[interpret]") {
  CHECK(visible_text("a\tb\r\n") == "a\\tb\\r\\n");
  CHECK(visible_text("\x1b[31mred\x7f") == "\\u{1b}[31mred\\u{7f}");
  CHECK(visible_text(std::string_view("\0", 1)) == "\\u{0}");
  CHECK(visible_text("back\\slash") == "back\\\\slash");
  CHECK(visible_text("caf\xc3\xa9 \xe2\x80\x94 \xf0\x9f\x99\x82") == "caf\xc3\xa9 \xe2\x80\x94 \xf0\x9f\x99\x82");
  CHECK(visible_text("\xc2\x85\xe2\x80\xae\xe2\x80\xa8") == "\\u{85}\\u{202e}\\u{2028}");
  // Half a character, a lone continuation, overlong forms, a surrogate, beyond Unicode.
  CHECK(visible_text("x\xf0\x9f\x99") == "x\\xf0\\x9f\\x99");
  CHECK(visible_text("\x82y") == "\\x82y");
  CHECK(visible_text("\xc0\xaf") == "\\xc0\\xaf");
  CHECK(visible_text("\xe0\x80\xaf") == "\\xe0\\x80\\xaf");
  CHECK(visible_text("\xed\xa0\x80") == "\\xed\\xa0\\x80");
  CHECK(visible_text("\xf4\x90\x80\x80") == "\\xf4\\x90\\x80\\x80");
}

TEST_CASE("JSON gets UTF-8", "[interpret]") {
  CHECK(utf8_text("a\n\\caf\xc3\xa9") == "a\n\\caf\xc3\xa9");
  CHECK(utf8_text("x\xf0\x9fy\xc3") == "x\xef\xbf\xbd\xef\xbf\xbdy\xef\xbf\xbd");
}

TEST_CASE("a character that two tokens share is whole where neither is marked", "[interpret]") {
  const std::vector<std::string> pieces = {"caf\xc3", "\xa9", "!"};
  CHECK(context_text(pieces, 2) == "caf\xc3\xa9[[!]]");
  CHECK(context_text(pieces, 1) == "caf\\xc3[[\\xa9]]!");
}

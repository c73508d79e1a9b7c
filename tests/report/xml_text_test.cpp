#include <sae/report/xml_text.hpp>

#include "catch_compat.hpp"

using sae::xml_text;

TEST_CASE("text for XML: what it would take for its own is named", "[report]") {
  CHECK(xml_text("").empty());
  CHECK(xml_text("a<b> & \"c\" 'd'") == "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
  CHECK(xml_text("&amp;") == "&amp;amp;");
  CHECK(xml_text("tab\tline\n") == "tab\tline\n");
  CHECK(xml_text("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80") == "\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80");
}

TEST_CASE("text for XML: what it cannot hold becomes U+FFFD, one for each", "[report]") {
  const std::string replaced = "\xEF\xBF\xBD";
  CHECK(xml_text(std::string("a\0b\x01\x1B", 5)) == "a" + replaced + "b" + replaced + replaced);
  CHECK(xml_text("\xFF\xC3") == replaced + replaced);                         // no UTF-8, and half a character
  CHECK(xml_text("\xED\xA0\x80") == replaced + replaced + replaced);          // a surrogate is no character
  CHECK(xml_text("\xEF\xBF\xBE|\xEF\xBF\xBF") == replaced + "|" + replaced);  // U+FFFE, U+FFFF
  CHECK(xml_text("\xEF\xBF\xBD") == replaced);
}

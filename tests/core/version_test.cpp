#include <sae/core/version.hpp>

#include <string>

#include "catch_compat.hpp"

#define SAE_TEST_TEXT_OF(x) #x
#define SAE_TEST_TEXT(x) SAE_TEST_TEXT_OF(x)

TEST_CASE("the inline namespace carries the major and minor version", "[core][version]") {
  CHECK(std::string(SAE_TEST_TEXT(SAE_ABI)) ==
        "v" + std::to_string(SAE_VERSION_MAJOR) + "_" + std::to_string(SAE_VERSION_MINOR));
}

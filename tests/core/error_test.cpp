#include <sae/core/error.hpp>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>

#include "catch_compat.hpp"

TEST_CASE("concat writes texts and numbers in the shortest form that reads back", "[core][error]") {
  using sae::detail::concat;
  CHECK(concat() == "");
  CHECK(concat("k = ", 3, ' ', std::string("of"), ' ', std::string_view("five")) == "k = 3 of five");
  CHECK(concat(true, ' ', false) == "true false");
  CHECK(concat(0.1, ' ', 0.1f, ' ', 1e-300, ' ', 2.0) == "0.1 0.1 1e-300 2");
  CHECK(concat(std::numeric_limits<std::int64_t>::min()) == "-9223372036854775808");
  CHECK(concat(std::numeric_limits<std::uint64_t>::max()) == "18446744073709551615");
  CHECK(concat(std::numeric_limits<double>::quiet_NaN(), ' ', -std::numeric_limits<double>::infinity()) == "nan -inf");
  for (const double x : {1.0 / 3, 1e22, 123456789.125, 5e-324, std::numeric_limits<double>::max()})
    CHECK(std::strtod(concat(x).c_str(), nullptr) == x);
  CHECK(concat(static_cast<signed char>(-5), ' ', std::uint8_t{200}) == "-5 200");  // small integers are numbers, not letters
}

TEST_CASE("each error has its type and its sentence", "[core][error]") {
  const auto message = [](const auto& thrower) -> std::string {
    try {
      thrower();
    } catch (const std::exception& e) {
      return e.what();
    }
    return "nothing was thrown";
  };
  CHECK_THROWS_AS(sae::throw_value("a"), sae::ValueError);
  CHECK_THROWS_AS(sae::throw_shape("a"), sae::ShapeError);
  CHECK_THROWS_AS(sae::throw_file("a"), sae::FileError);
  CHECK_THROWS_AS(sae::throw_host("a"), sae::HostError);
  CHECK(message([] { sae::throw_value("k = ", 0, " is not in [1, ", 8, "]"); }) == "k = 0 is not in [1, 8]");
  // What a caller may catch: misuse is an invalid_argument, a shape is a value, files and hosts fail at run time.
  CHECK_THROWS_AS(sae::throw_shape("a"), sae::ValueError);
  CHECK_THROWS_AS(sae::throw_value("a"), std::invalid_argument);
  CHECK_THROWS_AS(sae::throw_file("a"), std::runtime_error);
  CHECK_THROWS_AS(sae::throw_host("a"), std::runtime_error);
}

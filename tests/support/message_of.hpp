#pragma once
#include <exception>
#include <string>

namespace sae_test {

/// What f() throws says.
template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace sae_test

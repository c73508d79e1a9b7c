// Searches for inputs that break `load`; the same body as in tests/formats/package_fuzz_test.cpp.
//   clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude -isystem /usr/include/eigen3
//     tests/fuzz/package_fuzz.cpp -o package_fuzz && ./package_fuzz -max_total_time=60
#include <unistd.h>

#include "package_fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("sae-fuzz-" + std::to_string(::getpid()));
  package_fuzz({data, size}, folder);
  return 0;
}

// Searches for inputs that break the reader; the same body as in tests/files/fuzz_replay_test.cpp.
//   clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude -isystem /usr/include/eigen3
//     tests/fuzz/config_fuzz.cpp -o config_fuzz && ./config_fuzz -max_total_time=60
#include "config_fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  config_fuzz({data, size});
  return 0;
}

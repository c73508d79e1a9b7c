// Searches for inputs that break the reader; the same body as in tests/files/fuzz_replay_test.cpp.
//   clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude -isystem /usr/include/eigen3
//     tests/fuzz/index_fuzz.cpp -o index_fuzz && ./index_fuzz -max_total_time=60
#include "index_fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  index_fuzz({data, size});
  return 0;
}

#include "bench.hpp"

int main(int argc, char** argv) { return sae_bench::run(argc, argv, sae_bench::run_benchmarks); }

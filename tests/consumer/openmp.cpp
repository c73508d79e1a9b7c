// A program that uses OpenMP gets the same numbers from the library however many threads OpenMP has.
#include <omp.h>

#include <sae/sae.hpp>
#include <cstdio>

int main() {
  const sae::SparseAutoencoder model(3000, 512, sae::TopK{.k = 8});
  const sae::Matrix<float> x = sae::Matrix<float>::Random(256, 3000);
  sae::Threads one(1);
  omp_set_num_threads(1);
  const sae::Matrix<float> want = model.pre_activations(x, one);
  omp_set_num_threads(3);
  const sae::Matrix<float> got = model.pre_activations(x, one);
  if (omp_get_max_threads() != 3) {
    std::puts("the library changed the number of OpenMP's threads");
    return 1;
  }
  std::printf("%d of %d pre-activations differ\n", static_cast<int>((want.array() != got.array()).count()),
              static_cast<int>(want.size()));
  return want == got ? 0 : 1;
}

// What a program of somebody else's looks like: one include, one small use.
#include <sae/sae.hpp>

#include <cstdio>

int main() {
  std::printf("sae %d.%d.%d\n", SAE_VERSION_MAJOR, SAE_VERSION_MINOR, SAE_VERSION_PATCH);
  const Eigen::Matrix2f dense = Eigen::Matrix2f::Identity();
  return sae::Codes<float>::from_dense(dense).size() == 2 ? 0 : 1;
}
